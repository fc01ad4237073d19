"""dplr_scan's Triton form: each token is two steps, the first writes b where a reads the state, the second writes k."""

from __future__ import annotations

import torch
from torch import Tensor

from ..matrix_state.triton_backward import backward as differentiate
from ..matrix_state.triton_forward import forward as run
from ..matrix_state.triton_tiles import Recurrence, nothing_kept, refuses

__all__ = ["backward", "forward", "refuses"]


def _recurrence(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    log_decay: Tensor,
    initial_state: Tensor | None,
    reset: Tensor | None,
    scale: float,
) -> Recurrence:
    x, y, r = (
        torch.stack(pair, 2).flatten(1, 2) for pair in ((a, torch.zeros_like(a)), (b, k), (torch.zeros_like(v), v))
    )
    # a reads the state that the token found, before its decay.
    return Recurrence(q, y, r, log_decay, x, None, initial_state, reset, scale, 0, 1)


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    log_decay: Tensor,
    initial_state: Tensor | None,
    reset: Tensor | None,
    scale: float,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute o and the final state; as :func:`.chunked.forward`."""
    o, final = run(_recurrence(q, k, v, a, b, log_decay, initial_state, reset, scale))
    return o, final, nothing_kept(final, initial_state, save)


def backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    log_decay: Tensor,
    initial_state: Tensor | None,
    reset: Tensor | None,
    scale: float,
    before: Tensor,
    do: Tensor | None,
    dfinal: Tensor | None,
) -> tuple[Tensor, ...]:
    """Compute the gradients of all tensors; as :func:`.chunked.backward`."""
    found = differentiate(_recurrence(q, k, v, a, b, log_decay, initial_state, reset, scale), do, dfinal)
    assert found.x is not None
    assert found.g is not None
    db, dk = (t.to(k.dtype) for t in (found.y[:, 0::2], found.y[:, 1::2]))
    da, dv = found.x[:, 0::2].to(a.dtype), found.r[:, 1::2].to(v.dtype)
    dk, dv, da, db = (t.contiguous() for t in (dk, dv, da, db))
    return found.q, dk, dv, da, db, found.g, found.initial
