"""Files that are whole or absent: atomic writes, and checkpoints without pickled objects."""

from __future__ import annotations

import os
import pickle
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import torch
from lightning.pytorch.plugins.io import CheckpointIO
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from .errors import ConfigError


@contextmanager
def atomic_file(path: str | Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a file that takes ``path``'s place when the block ends, and leaves it untouched when the block fails.

    The bytes go to a file beside the target (the same file system, so the last step is one rename), reach the disk,
    and only then get the target's name.

    Args:
        path: The file to write; its folder is made.
        mode: ``"wb"`` or ``"w"`` (UTF-8).

    Yields:
        The open file.

    Raises:
        ConfigError: The file cannot be written; names the file and the reason, and says the former one is whole.
    """
    target = Path(path)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, target)
        _sync_folder(target.parent)
    except BaseException as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        reason = _system_error(error)
        if reason is None:
            raise
        former = "the former file is whole" if target.exists() else "no file was left behind"
        raise ConfigError(
            f"{target}: cannot be written ({reason}); {former}. Free some space or choose another folder"
        ) from error


def _system_error(error: BaseException | None) -> str | None:
    """Return the operating system's reason behind an error, or None; torch.save wraps it in a RuntimeError."""
    while error is not None:
        if isinstance(error, OSError):
            return error.strerror or str(error)
        error = error.__cause__ or error.__context__
    return None


def _sync_folder(folder: Path) -> None:
    """Make a rename durable; Windows has no handle on a folder to sync."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint on the CPU: tensors and plain values alone.

    Args:
        path: A ``.ckpt`` file.

    Returns:
        Its contents.

    Raises:
        ConfigError: The file is absent, damaged, or holds pickled objects, which are named.
    """
    checkpoint = read_weights(path)
    if "state_dict" not in checkpoint:
        raise ConfigError(f"{path}: not a training checkpoint: it has no 'state_dict'")
    return checkpoint


def read_weights(path: str | Path) -> dict[str, Any]:
    """Read a file of weights on the CPU: safetensors, or what ``torch.save`` wrote of tensors and plain values.

    Args:
        path: The file.

    Returns:
        Its contents.

    Raises:
        ConfigError: The file is absent, damaged, holds pickled objects, which are named, or no names of tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"{path}: there is no such checkpoint file")
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        unknown = _unknown_globals(path)
        if unknown:
            raise ConfigError(
                f"{path}: refused, it holds pickled objects, and unpickling them can run any code: "
                f"{', '.join(unknown)}. Save tensors and plain values only"
            ) from error
        raise ConfigError(f"{path}: not a readable checkpoint ({_first_line(error)})") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, SafetensorError) as error:
        raise ConfigError(
            f"{path}: not a readable checkpoint of {path.stat().st_size} bytes ({_first_line(error)}); "
            "it is damaged or of another format"
        ) from error
    if not isinstance(checkpoint, dict):
        raise ConfigError(f"{path}: found a {type(checkpoint).__name__}, expected tensors by name")
    return checkpoint


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _unknown_globals(path: Path) -> list[str]:
    """Return the names of the classes and functions a pickled checkpoint asks for, beyond the safe ones."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # the legacy (non-zip) format cannot be listed; the caller reports the load error itself
        return []


class CheckpointStore(CheckpointIO):
    """Writes checkpoints atomically and reads them without unpickling objects, whatever the caller asks."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        with atomic_file(path) as file:
            torch.save(checkpoint, file)

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return read_checkpoint(path)

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


def require_same_layout(
    saved: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: str, limit: int = 20
) -> None:
    """Check that saved tensors have the names and shapes a module expects.

    Args:
        saved: Tensors read from a file.
        expected: The module's own ``state_dict``.
        source: The file's name, for the message.
        limit: Most differences listed.

    Raises:
        ConfigError: Lists the keys that are missing, unexpected, or of another shape.
    """
    lines = [f"missing in the file: {key} {tuple(expected[key].shape)}" for key in expected if key not in saved]
    lines += [f"unknown to the model: {key} {tuple(saved[key].shape)}" for key in saved if key not in expected]
    lines += [
        f"shape differs: {key} is {tuple(saved[key].shape)} in the file, {tuple(expected[key].shape)} in the model"
        for key in expected
        if key in saved and saved[key].shape != expected[key].shape
    ]
    if lines:
        more = f"\n  ... and {len(lines) - limit} more" if len(lines) > limit else ""
        shown = "".join(f"\n  {line}" for line in lines[:limit])
        raise ConfigError(
            f"{source}: was made with another configuration; {len(lines)} tensors differ:{shown}{more}\n"
            "Use the configuration it was made with (config.yaml in its run folder)"
        )
