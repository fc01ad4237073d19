"""newton_scan by Newton's method beside the recurrence step by step: where solving all steps at once wins, if at all.

The step-by-step forms take one pass; Newton's method takes several, in log2(L) rounds each, whose work is shared out
over time as well as over channels. It can win where channels are too few for the machine and sequences are long.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from scanweave.kernels import cell_scan, newton_scan
from scanweave.kernels.newton_scan.cells import find_cell
from scanweave.kernels.newton_scan.chunked import solve

from .floor import median_seconds

pytestmark = pytest.mark.bench

LENGTHS, CHANNELS, THREADS = (256, 1024, 4096, 16384), (1, 8, 64, 1024), (1, 2)
LARGEST = 1 << 20  # steps times channels: beyond, a call of Newton's method takes a second, and the ratios stay

Call = Callable[..., Tensor]


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _draw(cell: str, length: int, channels: int) -> tuple[Tensor, Tensor]:
    generator, found = torch.Generator().manual_seed(0), find_cell(cell)
    wx = torch.randn(1, length, len(found.gates), channels, generator=generator)
    return wx, torch.randn(len(found.weights), channels, generator=generator) / 2


def _heads_of_one(wx: Tensor, r: Tensor) -> Tensor:
    """Return cell_scan's GRU with one channel a head: its matrices are then as diagonal."""
    R = r.t()[:, :, None, None]
    return cell_scan(wx.transpose(2, 3).unsqueeze(-1), R, cell="gru")[0]


def _milliseconds(call: Call, wx: Tensor, r: Tensor) -> float:
    """Return the time of forward and backward."""
    leaves = [x.clone().requires_grad_() for x in (wx, r)]

    def train() -> object:
        y = call(*leaves)
        return torch.autograd.grad(y, leaves, torch.ones_like(y))

    return median_seconds(train, rounds=3) * 1e3


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_newton_beside_the_recurrence(cell: str) -> None:
    calls: dict[str, Call] = {
        "cpu": lambda wx, r: newton_scan(wx, r, cell=cell, backend="cpu")[0],
        "newton": lambda wx, r: newton_scan(wx, r, cell=cell, backend="chunked")[0],
    }
    if cell == "gru":
        calls["cell_scan"] = _heads_of_one
    wins = []
    print(f"\nnewton_scan {cell}, forward + backward, milliseconds")
    print(f"{'threads':>8}{'L':>8}{'B C':>6}" + "".join(f"{name:>12}" for name in calls), end="")
    print(f"{'newton/cpu':>12}{'iterations':>12}{'residual':>12}")
    for threads in THREADS:
        for channels in CHANNELS:
            for length in LENGTHS:
                if length * channels > LARGEST:
                    continue
                wx, r = _draw(cell, length, channels)
                with _threads(threads):
                    found = {name: _milliseconds(call, wx, r) for name, call in calls.items()}
                    initial = wx.new_zeros(1, len(find_cell(cell).states), channels)
                    _, iterations, residual = solve(find_cell(cell), wx, r, initial, None, 2e-6, 100)
                ratio = found["newton"] / found["cpu"]
                print(f"{threads:>8}{length:>8}{channels:>6}" + "".join(f"{t:>12.3f}" for t in found.values()), end="")
                print(f"{ratio:>12.2f}{iterations:>12}{residual:>12.1e}")
                if ratio < 1:
                    wins.append((threads, length, channels))
                assert iterations <= 8
    places = ", ".join("{} threads L {} B C {}".format(*win) for win in wins)
    print(f"Newton's method is the faster at: {places}" if wins else "no crossing: the recurrence wins at all sizes")
    # What the default on a CPU rests on: with as many channels as lanes there is nothing left to share out over time.
    assert all(channels < 64 for _, _, channels in wins)
