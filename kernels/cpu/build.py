"""Builds the CPU kernels: the same sources once per instruction set, each a shared library of its own.

A library per set keeps inline code compiled for one set out of the others. The libraries have a plain C interface and
know nothing of Python or libtorch. Where no compiler is found, or a set is foreign to it, that library is left out and
the install still succeeds.
"""

from __future__ import annotations

import copy
import os
import platform
import sys
from pathlib import Path
from typing import Any

from setuptools import Extension
from setuptools.command.build_ext import build_ext
from setuptools.errors import CCompilerError, CompileError, ExecError, LinkError, PlatformError

ROOT = Path(__file__).resolve().parents[2]

X86 = {
    "baseline": ["-msse2"],
    "avx2": ["-mavx2", "-mfma"],
    "avx512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mprefer-vector-width=512"],
}
OPENMP = ["-fopenmp"]
FAILURES = (CCompilerError, CompileError, ExecError, LinkError, PlatformError, OSError)
FLAGS = ["-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden", "-fPIC"]


def instruction_sets() -> dict[str, list[str]]:
    """Return the instruction sets to build for on this machine's architecture, with their compiler flags."""
    if platform.machine().lower() in {"x86_64", "amd64"}:
        return X86
    return {"baseline": []}  # 64-bit Arm has NEON in its baseline


def extensions() -> list[Extension]:
    """Return one extension per instruction set over every ``kernels/*/cpu.cpp``."""
    sources = sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "kernels").glob("*/cpu.cpp"))
    headers = sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "kernels").glob("*/*.h"))
    openmp = [] if sys.platform == "darwin" else OPENMP  # Apple's compiler has none: one thread there
    return [
        Extension(
            f"scanweave.kernels.cpu._{name}",
            sources=sources,
            depends=headers,
            include_dirs=["kernels/cpu"],
            extra_compile_args=[*FLAGS, *openmp, *flags],
            extra_link_args=openmp,
            language="c++",
            optional=True,
        )
        for name, flags in instruction_sets().items()
    ]


class BuildKernels(build_ext):
    """``build_ext`` whose extensions are the CPU kernels; a failure costs speed, never the install."""

    parallel: int | None

    def finalize_options(self) -> None:
        modules: Any = extensions()  # to a type checker setuptools' Extension is not distutils'
        self.distribution.ext_modules = modules
        super().finalize_options()
        self.extensions = modules
        self.parallel = self.parallel or os.cpu_count()

    def get_export_symbols(self, ext: Any) -> list[str]:
        return []

    def build_extension(self, ext: Extension) -> None:
        # A copy with a folder of its own: the sets share their sources, so their objects would overwrite each other.
        worker = copy.copy(self)
        worker.build_temp = os.path.join(self.build_temp, ext.name)
        try:
            build_ext.build_extension(worker, ext)
        except FAILURES as error:
            self.warn(f"{ext.name}: {error}; trying without OpenMP: one thread")
            ext.extra_compile_args = [a for a in ext.extra_compile_args if a not in OPENMP]
            ext.extra_link_args = []
            try:
                build_ext.build_extension(worker, ext)
            except FAILURES as second:
                self.warn(f"{ext.name} was not built ({second}); the CPU runs the slower 'chunked' backend instead")
