"""The option that the benchmarks share: where their numbers go."""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--bench-out", type=Path, default=None, help="folder for one JSON file per table of timings")


@pytest.fixture
def bench_out(request: pytest.FixtureRequest) -> Path | None:
    """Return the folder that ``--bench-out`` names, or None."""
    return request.config.getoption("--bench-out", default=None)
