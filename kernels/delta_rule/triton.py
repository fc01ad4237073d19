"""delta_rule's Triton form: steps that read the decayed state with ``-beta k`` and write ``beta v`` beside it."""

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
    beta: Tensor,
    log_decay: Tensor | None,
    initial_state: Tensor | None,
    reset: Tensor | None,
    scale: float,
) -> tuple[Recurrence, Tensor, Tensor, Tensor]:
    """Return the recurrence, and k, v and beta with a token's corrections as steps of their own."""
    k, v = k.flatten(1, 2), v.flatten(1, 2)
    beta = beta.to(torch.float32).flatten(1, 2).unsqueeze(-1)
    this = Recurrence(q, k, beta * v, log_decay, -beta * k, None, initial_state, reset, scale)
    return this, k, v, beta


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None,
    initial_state: Tensor | None,
    reset: Tensor | None,
    scale: float,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute o and the final state; as :func:`.chunked.forward`."""
    o, final = run(_recurrence(q, k, v, beta, log_decay, initial_state, reset, scale)[0])
    return o, final, nothing_kept(final, initial_state, save)


def backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None,
    initial_state: Tensor | None,
    reset: Tensor | None,
    scale: float,
    before: Tensor,
    do: Tensor | None,
    dfinal: Tensor | None,
) -> tuple[Tensor, ...]:
    """Compute the gradients of all tensors; as :func:`.chunked.backward`."""
    this, keys, values, strength = _recurrence(q, k, v, beta, log_decay, initial_state, reset, scale)
    found = differentiate(this, do, dfinal)
    assert found.x is not None
    dk, dv = found.y - strength * found.x, strength * found.r
    dbeta = (values * found.r).sum(-1) - (keys * found.x).sum(-1)
    dlog = q.new_empty(0) if found.g is None else found.g
    return (
        found.q, dk.to(k.dtype).view(k.shape), dv.to(v.dtype).view(v.shape), dbeta.to(beta.dtype).view(beta.shape),
        dlog, found.initial,
    )  # fmt: skip
