"""Loads the C++ kernels that suit this processor, and says why there are none where there are none."""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

#: Instruction sets from the plainest to the widest; a processor that has one has those before it.
INSTRUCTION_SETS = ("baseline", "avx2", "avx512")
_WIDEST = {"AVX512": "avx512", "AVX2": "avx2"}

POINTER, SIZE, INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int


def built() -> dict[str, Path]:
    """Return the libraries that the install built, by instruction set."""
    folder = Path(__file__).parent
    found = {
        name: sorted(p for p in folder.glob(f"_{name}.*") if p.suffix in {".so", ".dylib", ".pyd"})
        for name in INSTRUCTION_SETS
    }
    return {name: paths[0] for name, paths in found.items() if paths}


def usable() -> list[str]:
    """Return the built instruction sets that this processor has, from the plainest to the widest."""
    widest = _WIDEST.get(torch.backends.cpu.get_cpu_capability(), "baseline")
    found = built()
    return [name for name in INSTRUCTION_SETS[: INSTRUCTION_SETS.index(widest) + 1] if name in found]


def instruction_set() -> str | None:
    """Return the widest usable instruction set, or what ``SCANWEAVE_ISA`` names.

    Returns:
        One of :data:`INSTRUCTION_SETS`, or None where no library was built.

    Raises:
        RuntimeError: ``SCANWEAVE_ISA`` names a set that is not built or that this processor lacks.
    """
    found, wanted = usable(), os.environ.get("SCANWEAVE_ISA")
    if wanted and wanted not in found:
        raise RuntimeError(f"SCANWEAVE_ISA={wanted!r}: this processor and this install can use {found or 'none'}")
    return wanted or (found[-1] if found else None)


@functools.cache
def library() -> ctypes.CDLL | None:
    """Return the loaded library, or None where none was built."""
    name = instruction_set()
    # Loaded after torch: both then share torch's OpenMP runtime, so that two pools never spin against each other.
    return ctypes.CDLL(str(built()[name])) if name else None


@torch.compiler.assume_constant_result
def _missing() -> bool:
    return library() is None


def refuses(tensor: Tensor) -> str | None:
    """Return why the C++ kernels cannot serve ``tensor``, or None."""
    if tensor.device.type != "cpu":
        return "it serves tensors on the CPU"
    if _missing():
        return (
            "its library was not built; install a C++ compiler (g++ or clang) and run pip install --force-reinstall "
            "--no-deps scanweave"
        )
    return None


def function(name: str, argtypes: list[Any]) -> Callable[..., int]:
    """Return a C function that is looked up at its first call.

    Args:
        name: Its exported name.
        argtypes: The ctypes types of its arguments; one ``int`` for the number of threads is appended.

    Returns:
        A callable on plain values (data pointers as ints, 0 for null) that returns the C function's int.
    """
    found: list[Callable[..., int]] = []

    def call(*args: Any) -> int:
        if not found:
            c = getattr(library(), name)
            c.argtypes, c.restype = [*argtypes, INT], INT
            found.append(c)
        return found[0](*args, torch.get_num_threads())

    return call


def pointer(tensor: Tensor | None) -> int:
    """Return the address of a tensor's first element, 0 for None."""
    return 0 if tensor is None else tensor.data_ptr()
