"""ttt_linear beside flash-linear-attention's PyTorch form, this package's own, and the rate of matrix products."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from scanweave.kernels import ttt_linear

from .compare import compare
from .floor import gemm_rate

pytestmark = pytest.mark.bench

BATCH, LENGTH, HEADS, WIDTH, MINI_BATCH = 4, 1024, 4, 64, 16
TITLE = f"B {BATCH} L {LENGTH} {HEADS} heads x {WIDTH}, mini-batch {MINI_BATCH}"
Op = Callable[..., Tensor]


def _ours(*tensors: Tensor) -> Tensor:
    return ttt_linear(*tensors)[0]


def _chunked(*tensors: Tensor) -> Tensor:
    return ttt_linear(*tensors, backend="chunked")[0]


def _fla() -> Op:
    naive = pytest.importorskip("fla.ops.ttt.naive")

    def call(q, k, v, eta, W0, b0, ln_weight, ln_bias):
        state = W0.expand(BATCH, *W0.shape), b0.unsqueeze(1).expand(BATCH, HEADS, 1, WIDTH)
        # It scales its queries in place, which leaves of autograd forbid; and its residual is the norm's own input.
        return naive.chunk_ttt_linear_ref(
            1 * q, k, v, ln_weight, ln_bias, eta.unsqueeze(-1), 1.0, 1e-6, MINI_BATCH, *state, True
        )[0]

    return call


def _draw() -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    sequence, vector = (BATCH, LENGTH, HEADS, WIDTH), (HEADS, WIDTH)
    parameters = (0.02 * normal(*vector, WIDTH), torch.zeros(vector), torch.ones(vector), torch.zeros(vector))
    return normal(*sequence), normal(*sequence), normal(*sequence), torch.full(sequence[:3], 1 / 64), *parameters


def _floor(products: int, pairs: int) -> float:
    """Return the seconds for so many products with the weights and of the pairs of a mini-batch at a GEMM's rate."""
    each = WIDTH * WIDTH * products + WIDTH * MINI_BATCH * pairs
    return 2 * BATCH * LENGTH * HEADS * each / gemm_rate()


def _candidates() -> dict[str, Op]:
    return {"scanweave": _ours, "chunked": _chunked, "fla": _fla()}


@torch.no_grad()
def test_forward(bench_out: Path | None) -> None:
    tensors = _draw()
    torch.testing.assert_close(_chunked(*tensors), _ours(*tensors), rtol=1e-3, atol=1e-3)
    calls = {name: lambda op=op: op(*tensors) for name, op in _candidates().items()}
    title = f"ttt_linear forward, {TITLE}"
    found = compare(title, calls, floor_seconds=_floor(3, 2), out=bench_out, rounds=9)
    assert found["fla"] >= found["scanweave"]


def test_forward_and_backward(bench_out: Path | None) -> None:
    tensors = _draw()
    dy = torch.randn(tensors[0].shape, generator=torch.Generator().manual_seed(1))

    def gradient(op: Op) -> Callable[[], object]:
        leaves = tuple(t.clone().requires_grad_() for t in tensors)
        return lambda: torch.autograd.grad(op(*leaves), leaves, dy, allow_unused=True)

    calls = {name: gradient(op) for name, op in _candidates().items()}
    title = f"ttt_linear forward + backward, {TITLE}"
    found = compare(title, calls, floor_seconds=_floor(11, 8), out=bench_out, rounds=5)
    assert found["fla"] >= found["scanweave"]
