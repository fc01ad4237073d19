"""What every test shares: where real data lies, and Triton's interpreter where there is no GPU."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    # Triton reads this when it is imported, so before anything that holds a kernel.
    os.environ.setdefault("TRITON_INTERPRET", "1")

WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0"))
if WORKERS:
    # Processes side by side share the cores instead of each taking all, and so does what they start.
    share = max(1, (os.cpu_count() or 1) // WORKERS)
    os.environ.setdefault("OMP_NUM_THREADS", str(share))
    torch.set_num_threads(share)

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
