"""The definition of gated_linear_attention: a loop over time that autograd differentiates."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import state_dtype
from ..matrix_state import first_state


def gated_linear_attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    bonus: Tensor | None,
    initial_state: Tensor | None,
    reset: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Compute ``S_t = Diag(a_t) S_{t-1} + k_t v_t^T`` and ``o_t = scale S_t^T q_t`` one step at a time.

    Args:
        q: Queries (B, L, H, K).
        k: Keys (B, L, H, K).
        v: Values (B, L, H, V).
        log_decay: ``log a``: (H,), (B, L, H) or (B, L, H, K).
        bonus: (H, K) or None; with it ``o_t = scale (S_{t-1} + Diag(bonus) k_t v_t^T)^T q_t``.
        initial_state: State (B, H, K, V) before the first step, in the state's dtype; None is zero.
        reset: (B, L) bool; where True the state before that step counts as zero.
        scale: Factor of the output.

    Returns:
        o (B, L, H, V) in q's dtype, and the last state (B, H, K, V) in the state's dtype.
    """
    dtype = state_dtype(q.dtype)
    state = first_state(q, v.shape[3], initial_state)
    decay = torch.exp(log_decay.to(dtype))
    if log_decay.dim() == 1:
        decay = decay.expand(q.shape[:3])
    if log_decay.dim() < 4:
        decay = decay.unsqueeze(-1)
    outputs: list[Tensor] = []
    steps = zip(*(x.to(dtype).unbind(1) for x in (q, k, v)), decay.unbind(1), strict=True)
    for t, (q_t, k_t, v_t, a_t) in enumerate(steps):
        if reset is not None:
            state = state.masked_fill(reset[:, t, None, None, None], 0)
        written = k_t.unsqueeze(-1) * v_t.unsqueeze(-2)
        after = a_t.unsqueeze(-1) * state + written
        read = after if bonus is None else state + bonus.to(dtype).unsqueeze(-1) * written
        outputs.append((q_t.unsqueeze(-1) * read).sum(-2))
        state = after
    return (scale * torch.stack(outputs, 1)).to(q.dtype), state
