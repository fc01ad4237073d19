"""A trained network in the formats of other programs, each compared with the network itself after it was written."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from ...core.checkpoint import export, load_exported
from ...core.errors import ConfigError
from ...core.session import load_weights
from ...core.spec import Session
from ...core.storage import atomic_file
from ...kernels.portable import export_in_plain_operators
from .task import ImageClassification

Format = Literal["safetensors", "torch_export", "onnx"]
PROGRAM, ONNX = "model.pt2", "model.onnx"
_TOLERANCE = 1e-3


def export_formats(session: Session, formats: list[Format] | None = None) -> None:
    """Write a checkpoint's weights, or the whole network, and compare what was written with the network.

    Args:
        session: The configured run.
        formats: Any of safetensors (weights and a JSON description), torch_export (a program that torch.export.load
            reads; import scanweave.kernels before it) and onnx (needs onnx, onnxscript and onnxruntime); the
            last two take batches of any size. By default safetensors.
    """
    wanted = formats or ["safetensors"]
    if "onnx" in wanted:
        require_onnx()
    task = session.model
    assert isinstance(task, ImageClassification)  # the specification's module class
    load_weights(session)
    task.eval().cpu()
    folder = session.run.path / "export"
    preprocessing = task.context()["preprocessing"]
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, preprocessing["in_chans"], *2 * [preprocessing["img_size"]], generator=generator)
    with torch.no_grad():
        expected = task.model(images)
    folder.mkdir(parents=True, exist_ok=True)
    for name in dict.fromkeys(wanted):
        path, found = _WRITERS[name](task, images, folder)
        error = float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-6))
        if not error <= _TOLERANCE:
            raise ConfigError(
                f"{path}: written, and its outputs differ from the network's by {error:.1e} of the largest; expected "
                f"at most {_TOLERANCE:g}; do not use this file"
            )
        print(f"exported: {path} (differs by at most {error:.1e} of the largest output)")


def require_onnx() -> None:
    """Refuse ONNX where its packages are not installed.

    Raises:
        ConfigError: Says how to install them.
    """
    absent = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if absent:
        raise ConfigError(
            f"--formats onnx needs the packages {', '.join(absent)}, which are not installed; "
            "pip install onnx onnxscript onnxruntime"
        )


def _safetensors(task: ImageClassification, images: Tensor, folder: Path) -> tuple[Path, Tensor]:
    path = export(task, folder)
    with torch.no_grad():
        return path, load_exported(folder)(images)


def _by_parts(call: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Return the outputs of single images, joined: a batch of another size than the example's."""
    with torch.no_grad():
        return torch.cat([call(image[None]) for image in images])


# A batch of any size; the example's two images make one.
_ANY_BATCH = ({0: torch.export.Dim("batch", min=1)},)


def _torch_export(task: ImageClassification, images: Tensor, folder: Path) -> tuple[Path, Tensor]:
    path = folder / PROGRAM
    with torch.no_grad():
        program = torch.export.export(task.model, (images,), dynamic_shapes=_ANY_BATCH)
    with atomic_file(path) as file:
        torch.export.save(program, file)
    return path, _by_parts(torch.export.load(path).module(), images)


def _onnx(task: ImageClassification, images: Tensor, folder: Path) -> tuple[Path, Tensor]:
    import onnxruntime

    path = folder / ONNX
    plain = export_in_plain_operators(task.model, (images,), _ANY_BATCH)
    any_batch = bool(plain.range_constraints)
    if not any_batch:
        print("onnx: a part of this network fixes the batch: the file takes one image at a time")
        plain = export_in_plain_operators(task.model, (images[:1],))
    program = torch.onnx.export(plain, dynamo=True, verbose=False)
    assert program is not None  # returned where no file is named
    with atomic_file(path) as file:
        file.write(program.model_proto.SerializeToString())
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def call(batch: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {name: batch.numpy()})[0])

    found = [_by_parts(call, images), *([call(images)] if any_batch else [])]
    return path, torch.stack(found)


_WRITERS = {"safetensors": _safetensors, "torch_export": _torch_export, "onnx": _onnx}
