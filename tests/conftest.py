"""What every test shares: where real data lies, and Triton's interpreter where there is no GPU."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    # Triton reads this when it is imported, so before anything that holds a kernel.
    os.environ.setdefault("TRITON_INTERPRET", "1")

DATA_ROOT = Path(os.environ.get("SCANWEAVE_TEST_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


@pytest.fixture(scope="session")
def data_path():
    """Return a function from a relative name to a real data file; the test skips where the file is absent."""

    def find(name: str) -> Path:
        path = DATA_ROOT / name
        if not path.exists():
            pytest.skip(f"real data {name!r} is not at {DATA_ROOT}; set SCANWEAVE_TEST_DATA to the folder that has it")
        return path

    return find
