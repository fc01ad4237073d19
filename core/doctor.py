"""What this install can do: versions, devices, threads, and which backend serves each op."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import torch

from ..kernels import served_by
from ..kernels.cpu import built, instruction_set
from .cli import TASKS, UsageError, entry_points
from .errors import nearest

_PACKAGES = ("scanweave", "torch", "triton", "lightning", "torchmetrics", "timm", "sktime", "pandas", "safetensors")


def report() -> str:
    """Return the report that ``scanweave doctor`` prints."""
    return "\n".join([*_versions(), "", *_devices(), "", *_compiled(), "", *_backends(), "", *_tasks()])


def _versions() -> list[str]:
    lines = [f"python        {platform.python_version()} on {platform.system()} {platform.machine()}"]
    for name in _PACKAGES:
        try:
            lines.append(f"{name:<13} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            lines.append(f"{name:<13} not installed")
    return lines


def _devices() -> list[str]:
    lines = [
        f"cpu           {os.cpu_count()} cores, {torch.get_num_threads()} threads, "
        f"{torch.backends.cpu.get_cpu_capability()}"
    ]
    for i in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(i)
        lines.append(f"cuda:{i}        {gpu.name}, {gpu.total_memory / 2**30:.1f} GiB, sm_{gpu.major}{gpu.minor}")
    if torch.backends.mps.is_available():
        lines.append("mps           available")
    if torch.xpu.is_available():
        lines.append(f"xpu           {torch.xpu.device_count()} devices")
    return lines


def _compiled() -> list[str]:
    compiler = next((path for name in ("c++", "g++", "clang++") if (path := shutil.which(name))), "none found")
    sets = ", ".join(built()) or "none"
    return [f"compiler      {compiler}", f"C++ kernels   built: {sets}; in use: {instruction_set() or 'none'}"]


def _backends() -> list[str]:
    """List the backend of each op on each device, and why a faster one is not used."""
    lines = []
    for device in ("cpu", *(["cuda"] if torch.cuda.is_available() else [])):
        lines.append(f"ops on {device}:")
        for op, (chosen, refusals) in sorted(served_by(device).items()):
            lines.append(f"  {op:<24} {chosen}")
            native = "cpu" if device == "cpu" else "triton"
            if chosen != native:
                lines.append(f"    {native}: {refusals.get(native) or 'the op has no such form'}")
    return lines


def _tasks() -> list[str]:
    """Load each task and say which cannot be."""
    lines = []
    for name, point in entry_points(TASKS).items():
        try:
            lines.append(f"  {name:<24} {point.load().help}")
        except Exception as error:  # a broken task must not hide the others
            lines.append(f"  {name:<24} cannot be loaded: {type(error).__name__}: {error}")
    return ["tasks:", *(lines or ["  none installed"])]


def run_benchmarks(arguments: list[str]) -> int:
    """Run the benchmarks of a source checkout and return pytest's exit code.

    Args:
        arguments: Names of benchmark modules (``linear_scan`` for ``test_linear_scan.py``), then pytest options.

    Returns:
        The exit code.

    Raises:
        UsageError: There is no checkout, or no such module.
    """
    folder = Path(__file__).resolve().parents[1] / "tests" / "benchmarks"
    modules = {p.stem.removeprefix("test_"): p for p in sorted(folder.glob("test_*.py"))}
    if not modules:
        raise UsageError(
            f"there are no benchmarks at {folder}: they are part of the source checkout, not of the installed "
            "package. Clone the repository, pip install -e '.[bench]', and run scanweave bench there"
        )
    names = [a for a in arguments if not a.startswith("-")]
    unknown = [name for name in names if name not in modules]
    if unknown:
        raise UsageError(f"there is no benchmark {unknown[0]!r}{nearest(unknown[0], modules)}: {', '.join(modules)}")
    targets = [str(modules[name]) for name in names] or [str(folder)]
    options = [a for a in arguments if a.startswith("-")]
    command = [sys.executable, "-m", "pytest", "-n", "0", "-m", "bench", "-q", "-s", *targets, *options]
    return subprocess.run(command, cwd=folder.parents[1], check=False).returncode
