"""The option that the benchmarks share: where their numbers go."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--bench-out", type=Path, default=None, help="folder for one JSON file per table of timings")


@pytest.fixture
def bench_out(request: pytest.FixtureRequest) -> Path | None:
    """Return the folder that ``--bench-out`` names, or None."""
    return request.config.getoption("--bench-out", default=None)


@pytest.fixture(autouse=True)
def _alone() -> None:
    """Refuse to time one benchmark beside another."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        pytest.fail("benchmarks are timed one at a time: run them with `scanweave bench`, or add -n 0")
