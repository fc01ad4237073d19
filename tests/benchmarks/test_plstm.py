"""plstm_scan_2d beside its log-depth form and the loop over nodes, and its cost against the number of pixels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import pytest
import torch
from torch import Tensor

from scanweave.kernels import plstm_scan_2d

from .compare import compare
from .floor import gemm_rate

pytestmark = pytest.mark.bench

BATCH, SIDE, HEADS, WIDTH = 4, 32, 4, 64
TITLE = f"B {BATCH}, {SIDE} x {SIDE}, H {HEADS}, K = V = {WIDTH}, one direction pair"
FORMS = {"scanweave": None, "chunked (log depth)": "chunked", "node by node": "reference"}


def _draw(side: int, batch: int = BATCH) -> tuple[Tensor, ...]:
    """Return q, k, v and P-mode's gates: what a node takes it sends on, a share to each side."""
    generator = torch.Generator().manual_seed(0)
    grid = (batch, side, side, HEADS)
    q, k, v = (torch.randn(*grid, WIDTH, generator=generator) for _ in range(3))
    share = torch.rand(*grid, generator=generator)
    out = torch.stack([share, 1 - share], -1)
    mark, direct = (torch.rand(*grid, *inner, generator=generator) for inner in ((2,), ()))
    return q, k, v, out, out.unsqueeze(-1).repeat(1, 1, 1, 1, 1, 2), mark, direct


def _floor(side: int, products: int) -> float:
    """Return the seconds for products of a node's matrices with a number or a row, at the rate of matrix products."""
    return products * 2 * BATCH * side**2 * HEADS * WIDTH**2 / gemm_rate()


def _gradient(call: Callable[..., Tensor], tensors: tuple[Tensor, ...], do: Tensor) -> Callable[[], object]:
    leaves = tuple(t.clone().requires_grad_() for t in tensors)
    return lambda: torch.autograd.grad(call(*leaves), leaves, do)


def _calls() -> dict[str, Callable[..., Tensor]]:
    return {name: lambda *t, backend=backend: plstm_scan_2d(*t, backend=backend)[0] for name, backend in FORMS.items()}


@torch.no_grad()
def test_forward(bench_out: Path | None) -> None:
    tensors = _draw(SIDE)
    calls = {name: lambda call=call: call(*tensors) for name, call in _calls().items()}
    # Two products for what is read, three each for what is sent along and down.
    found = compare(f"plstm_scan_2d forward, {TITLE}", calls, floor_seconds=_floor(SIDE, 8), out=bench_out, rounds=5)
    assert found["scanweave"] < found["chunked (log depth)"] < found["node by node"]


def test_forward_and_backward(bench_out: Path | None) -> None:
    tensors = _draw(SIDE)
    do = torch.randn(tensors[2].shape, generator=torch.Generator().manual_seed(1))
    calls = {name: _gradient(call, tensors, do) for name, call in _calls().items()}
    title, floor = f"plstm_scan_2d forward + backward, {TITLE}", _floor(SIDE, 8 + 6 + 20)
    found = compare(title, calls, floor_seconds=floor, out=bench_out, rounds=5)
    assert found["scanweave"] < min(found["chunked (log depth)"], found["node by node"])


@torch.no_grad()
def test_cost_grows_with_the_number_of_pixels(bench_out: Path | None) -> None:
    lines = ["plstm_scan_2d forward, B 1, microseconds per pixel and head"]
    found = {}
    for side in (32, 64, 128, 256):
        tensors = _draw(side, batch=1)
        times = []
        for _ in range(3):
            start = perf_counter()
            plstm_scan_2d(*tensors)
            times.append(perf_counter() - start)
        found[side] = 1e6 * min(times) / (side**2 * HEADS)
        lines.append(f"{side:4d} x {side:<4d} {found[side]:8.2f}")
    text = "\n".join(lines)
    print(f"\n{text}")
    if bench_out is not None:
        (bench_out / "plstm_pixels.txt").write_text(text + "\n")
    assert found[256] < 3 * found[32]
