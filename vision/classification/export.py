"""A trained network in the formats of other programs, each compared with the network itself after it was written."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from ...core.checkpoint import export, load_exported
from ...core.errors import ConfigError
from ...core.session import load_weights
from ...core.spec import Session
from ...core.storage import atomic_file
from .task import ImageClassification

Format = Literal["safetensors", "torch_export", "onnx"]
PROGRAM, ONNX = "model.pt2", "model.onnx"
_TOLERANCE = 1e-3


def export_formats(session: Session, formats: list[Format] | None = None) -> None:
    """Write a checkpoint's weights, or the whole network, and compare what was written with the network.

    Args:
        session: The configured run.
        formats: Any of safetensors (weights and a JSON description), torch_export (a program that torch.export.load
            reads; import scanweave.kernels before it) and onnx (needs onnx, onnxscript and onnxruntime); by default
            safetensors.
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


def _program(model: nn.Module, images: Tensor) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=1)
    with torch.no_grad():
        return torch.export.export(model, (images,), dynamic_shapes=({0: batch},))


def _torch_export(task: ImageClassification, images: Tensor, folder: Path) -> tuple[Path, Tensor]:
    path = folder / PROGRAM
    with atomic_file(path) as file:
        torch.export.save(_program(task.model, images), file)
    return path, _by_parts(torch.export.load(path).module(), images)


def _by_parts(call: nn.Module, images: Tensor) -> Tensor:
    """Return the outputs of single images, joined: a batch of another size than the example's."""
    with torch.no_grad():
        return torch.cat([call(image[None]) for image in images])


def _onnx(task: ImageClassification, images: Tensor, folder: Path) -> tuple[Path, Tensor]:
    import onnxruntime

    from ...kernels import use_backend

    path = folder / ONNX
    with use_backend("chunked"):  # the form made of plain operators, which ONNX has
        program = torch.onnx.export(_program(task.model, images), dynamo=True, verbose=False)
    assert program is not None  # returned where no file is named
    program.save(str(path))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    outputs: Sequence[np.ndarray] = [session.run(None, {name: image[None].numpy()})[0] for image in images]
    return path, torch.from_numpy(np.concatenate(outputs))


_WRITERS = {"safetensors": _safetensors, "torch_export": _torch_export, "onnx": _onnx}
