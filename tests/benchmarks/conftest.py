"""What the benchmarks share: where their numbers go, and how many threads time them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--bench-out", type=Path, default=None, help="folder for one JSON file per table of timings")


@pytest.fixture
def bench_out(request: pytest.FixtureRequest) -> Path | None:
    """Return the folder that ``--bench-out`` names, or None."""
    return request.config.getoption("--bench-out", default=None)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Let PyTorch compute with one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _alone() -> None:
    """Refuse to time one benchmark beside another."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        pytest.fail("benchmarks are timed one at a time: run them with `scanweave bench`, or add -n 0")
