"""wkv4 beside transformers' RWKV-4 attention on the CPU, and beside the rate of exponentials."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from scanweave.kernels import wkv4

from .. import peers
from .compare import compare
from .floor import exp_rate

pytestmark = pytest.mark.bench

BATCH, LENGTH, CHANNELS = 4, 1024, 256
TITLE = f"B {BATCH} L {LENGTH} C {CHANNELS}"
FASTER = 10  # how often ours fits into the peer's time even beside another load
Attention = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def _candidates() -> dict[str, Attention]:
    """Return functions of k, v, w and u."""
    return {
        "scanweave": lambda k, v, w, u: wkv4(k, v, w, u)[0],
        "chunked": lambda k, v, w, u: wkv4(k, v, w, u, backend="chunked")[0],
        "transformers": peers.wkv4(),
    }


def _draw() -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    shapes = (BATCH, LENGTH, CHANNELS), (BATCH, LENGTH, CHANNELS), (CHANNELS,), (CHANNELS,)
    k, v, log_w, u = (torch.randn(*shape, generator=generator) for shape in shapes)
    return k, v, log_w.exp(), u


def _floor(passes: int) -> float:
    """Return the seconds for the exponentials: three per step and channel in each pass."""
    return passes * 3 * BATCH * LENGTH * CHANNELS / exp_rate()


@torch.no_grad()
def test_forward(bench_out: Path | None) -> None:
    tensors, candidates = _draw(), _candidates()
    for name, attention in candidates.items():
        torch.testing.assert_close(attention(*tensors), candidates["scanweave"](*tensors), msg=name)
    calls = {name: lambda attention=attention: attention(*tensors) for name, attention in candidates.items()}
    found = compare(f"wkv4 forward, {TITLE}", calls, floor_seconds=_floor(1), out=bench_out, rounds=9)
    assert found["transformers"] >= FASTER * found["scanweave"]


def _gradient(attention: Attention, tensors: tuple[Tensor, ...], dy: Tensor) -> Callable[[], object]:
    leaves = tuple(t.clone().requires_grad_() for t in tensors)
    return lambda: torch.autograd.grad(attention(*leaves), leaves, dy)


def test_forward_and_backward(bench_out: Path | None) -> None:
    tensors = _draw()
    dy = torch.randn(BATCH, LENGTH, CHANNELS, generator=torch.Generator().manual_seed(1))
    calls = {name: _gradient(attention, tensors, dy) for name, attention in _candidates().items()}
    found = compare(f"wkv4 forward + backward, {TITLE}", calls, floor_seconds=_floor(2), out=bench_out, rounds=3)
    assert found["transformers"] >= FASTER * found["scanweave"]
