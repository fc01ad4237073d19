"""Time and memory of the ops with a matrix state against the length, and what one more step costs after it."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import pytest
import torch

from .compare import peak_mebibytes
from .floor import median_seconds
from .test_matrix_state import BENCHES

pytestmark = pytest.mark.bench

LENGTHS = (1024, 4096, 16384, 65536)
NAMES = ("SSD", "GLA", "gated delta rule", "RWKV-7")

_SETUP = """
import torch
from tests.benchmarks.test_matrix_length import draw, train
short, tensors = draw({name!r}, 2), draw({name!r}, {length})
train({name!r}, short)
"""


def draw(name: str, length: int) -> dict[str, torch.Tensor]:
    """Return the tensors of one sequence as leaves."""
    drawn = BENCHES[name].draw(torch.Generator().manual_seed(0), (1, length, 4, 64))
    return {key: x.requires_grad_() for key, x in drawn.items()}


def train(name: str, tensors: dict[str, torch.Tensor]) -> None:
    """Run the op forward and backward."""
    o = BENCHES[name].op(**tensors)[0]
    torch.autograd.grad(o.sum(), list(tensors.values()))


def _step(name: str, length: int) -> Callable[[], object]:
    """Return a call of one step from the state after so many."""
    bench = BENCHES[name]
    with torch.no_grad():
        state = bench.op(**draw(name, length))[1]
    one = {key: x.detach() for key, x in draw(name, 1).items()}
    return lambda: bench.op(**one, initial_state=state)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_length(name: str) -> None:
    seconds, memory = [], []
    print(f"\n{name}, B 1 H 4 K = V = 64, forward + backward ({torch.get_num_threads()} threads)")
    print(f"{'L':>8}{'ms':>12}{'us a step':>12}{'peak MiB':>12}{'KiB a step':>12}")
    for length in LENGTHS:
        tensors = draw(name, length)
        seconds.append(median_seconds(lambda t=tensors: train(name, t), rounds=5))
        memory.append(peak_mebibytes(_SETUP.format(name=name, length=length), f"train({name!r}, tensors)"))
        print(
            f"{length:>8}{seconds[-1] * 1e3:>12.2f}{seconds[-1] / length * 1e6:>12.3f}"
            f"{memory[-1]:>12.1f}{memory[-1] / length * 1024:>12.2f}"
        )
    for what, found in (("time", seconds), ("memory", memory)):
        assert found[-1] / found[1] <= 2 * LENGTHS[-1] / LENGTHS[1], f"{what} grows faster than the length"


@torch.no_grad()
def test_step() -> None:
    print(f"\none step after L steps, B 1 H 4 K = V = 64, microseconds\n{'':20}{'L = 1024':>12}{'L = 65536':>12}")
    for name in NAMES:
        calls = {length: _step(name, length) for length in (LENGTHS[0], LENGTHS[-1])}
        times: dict[int, list[float]] = {length: [] for length in calls}
        for _ in range(200):
            for length, call in calls.items():
                begin = time.perf_counter()
                call()
                times[length].append(time.perf_counter() - begin)
        short, long = (statistics.median(found) * 1e6 for found in times.values())
        print(f"{name:20}{short:>12.1f}{long:>12.1f}")
        assert long <= 1.5 * short
