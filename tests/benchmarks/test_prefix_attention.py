"""prefix_attention beside cumulative sums, PyTorch's attention, and the rate of copies and exponentials."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from scanweave.kernels import prefix_attention

from .compare import compare
from .floor import copy_bandwidth, exp_rate

pytestmark = pytest.mark.bench

BATCH, LENGTH, HEADS, WIDTH = 4, 1024, 4, 64
TITLE = f"B {BATCH} L {LENGTH} H {HEADS} V {WIDTH}"
Attention = Callable[[Tensor, Tensor], Tensor]


def _cumulative(scores: Tensor, v: Tensor) -> Tensor:
    """Sum weights less the largest score of all: what one writes without a scan; it underflows for scores far apart."""
    weights = (scores - scores.amax(1, keepdim=True)).exp()
    return (weights.unsqueeze(-1) * v).cumsum(1) / weights.cumsum(1).unsqueeze(-1)


def _attention(scores: Tensor, v: Tensor) -> Tensor:
    """Attend with keys of one feature, the score, and the query 1."""
    keys = scores.transpose(1, 2).unsqueeze(-1)
    o = F.scaled_dot_product_attention(torch.ones_like(keys), keys, v.transpose(1, 2), is_causal=True, scale=1.0)
    return o.transpose(1, 2)


CANDIDATES: dict[str, Attention] = {
    "scanweave": lambda scores, v: prefix_attention(scores, v)[0],
    "chunked": lambda scores, v: prefix_attention(scores, v, backend="chunked")[0],
    "cumulative sums": _cumulative,
    "softmax attention": _attention,
}


def _draw() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (BATCH, LENGTH, HEADS)
    return torch.randn(*shape, generator=generator), torch.randn(*shape, WIDTH, generator=generator)


def _floor(copies: int) -> float:
    """Return the seconds to read and write the values, and for one exponential per score."""
    size = BATCH * LENGTH * HEADS
    moved = copies * 2 * 4 * size * WIDTH
    return moved / copy_bandwidth(moved) + size / exp_rate()


@torch.no_grad()
def test_forward(bench_out: Path | None) -> None:
    tensors = _draw()
    for name, attention in CANDIDATES.items():
        torch.testing.assert_close(attention(*tensors), CANDIDATES["scanweave"](*tensors), msg=name)
    calls = {name: lambda attention=attention: attention(*tensors) for name, attention in CANDIDATES.items()}
    found = compare(f"prefix_attention forward, {TITLE}", calls, floor_seconds=_floor(1), out=bench_out, rounds=9)
    assert found["scanweave"] < found["softmax attention"]


def test_forward_and_backward(bench_out: Path | None) -> None:
    tensors = _draw()
    do = torch.randn(tensors[1].shape, generator=torch.Generator().manual_seed(1))

    def gradient(attention: Attention) -> Callable[[], object]:
        leaves = tuple(t.clone().requires_grad_() for t in tensors)
        return lambda: torch.autograd.grad(attention(*leaves), leaves, do)

    calls = {name: gradient(attention) for name, attention in CANDIDATES.items()}
    title = f"prefix_attention forward + backward, {TITLE}"
    found = compare(title, calls, floor_seconds=_floor(3), out=bench_out, rounds=5)
    assert found["scanweave"] < found["softmax attention"]
