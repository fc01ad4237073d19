"""Runs the command line in a process of its own, forked from a server that has imported everything once."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["scanweave.core.session", "tests.core.tiny"])


def environment() -> dict[str, str]:
    """Return this process's environment for a Python of its own that finds the tests, on one thread."""
    path = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


@dataclass
class Result:
    """How a command ended; a negative code is the signal that killed it."""

    code: int
    out: str
    err: str

    def ok(self) -> Result:
        assert self.code == 0, f"exit code {self.code}\n{self.out}\n{self.err}"
        return self


def _child(arguments: list[str], folder: str, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    os.chdir(folder)
    for name, number in (("stdout.txt", 1), ("stderr.txt", 2)):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    sys.argv = ["scanweave"]
    torch.set_num_threads(1)
    from scanweave.core.cli import main

    from .tiny import SPEC

    sys.exit(main(arguments, tasks={"tiny": SPEC}))


def start(arguments: Sequence[str], folder: Path, **environment: str) -> Any:
    """Start a command in a folder and return the process."""
    folder.mkdir(parents=True, exist_ok=True)
    process = CONTEXT.Process(target=_child, args=(list(arguments), str(folder), environment))
    process.start()
    return process


def finish(process: Any, folder: Path, timeout: float = 120.0) -> Result:
    """Wait for a command."""
    process.join(timeout)
    if process.exitcode is None:
        process.kill()
        process.join()
    out, err = (
        (folder / name).read_text() if (folder / name).exists() else "" for name in ("stdout.txt", "stderr.txt")
    )
    return Result(process.exitcode, out, err)


def run(*arguments: str, folder: Path, **environment: str) -> Result:
    """Run a command in a folder."""
    return finish(start(arguments, folder, **environment), folder)
