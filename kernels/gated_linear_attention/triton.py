"""gated_linear_attention's Triton form: the matrix-state kernels, with steps that read nothing before they write."""

from __future__ import annotations

from torch import Tensor

from ..matrix_state.triton_backward import backward as differentiate
from ..matrix_state.triton_forward import forward as run
from ..matrix_state.triton_tiles import Recurrence, nothing_kept, refuses

__all__ = ["backward", "forward", "refuses"]


def _recurrence(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    bonus: Tensor | None,
    initial_state: Tensor | None,
    reset: Tensor | None,
    scale: float,
) -> Recurrence:
    g = log_decay.expand(q.shape[:3]) if log_decay.dim() == 1 else log_decay
    lag = 0 if bonus is None else 1
    return Recurrence(q, k, v, g, None, bonus, initial_state, reset, scale, lag)


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    bonus: Tensor | None,
    initial_state: Tensor | None,
    reset: Tensor | None,
    scale: float,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute o and the final state; as :func:`.chunked.forward`."""
    o, final = run(_recurrence(q, k, v, log_decay, bonus, initial_state, reset, scale))
    return o, final, nothing_kept(final, initial_state, save)


def backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    bonus: Tensor | None,
    initial_state: Tensor | None,
    reset: Tensor | None,
    scale: float,
    before: Tensor,
    do: Tensor | None,
    dfinal: Tensor | None,
) -> tuple[Tensor, ...]:
    """Compute the gradients of all tensors; as :func:`.chunked.backward`."""
    found = differentiate(_recurrence(q, k, v, log_decay, bonus, initial_state, reset, scale), do, dfinal)
    assert found.g is not None
    dlog = found.g.sum((0, 1)).to(log_decay.dtype) if log_decay.dim() == 1 else found.g
    dbonus = q.new_empty(0) if found.bonus is None else found.bonus
    return found.q, found.y.to(k.dtype), found.r, dlog, dbonus, found.initial
