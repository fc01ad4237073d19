"""The definition of dplr_scan: a loop over time that autograd differentiates."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import state_dtype
from ..matrix_state import first_state


def dplr_scan_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    log_decay: Tensor,
    initial_state: Tensor | None,
    reset: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Compute ``S_t = Diag(w_t) S_{t-1} + b_t (a_t^T S_{t-1}) + k_t v_t^T`` and ``o_t = scale S_t^T q_t`` step by step.

    Args:
        q: Queries (B, L, H, K).
        k: Keys (B, L, H, K).
        v: Values (B, L, H, V).
        a: What the rank-one term reads, (B, L, H, K).
        b: Where the rank-one term writes, (B, L, H, K).
        log_decay: ``log w`` (B, L, H, K).
        initial_state: State (B, H, K, V) before the first step, in the state's dtype; None is zero.
        reset: (B, L) bool; where True the state before that step counts as zero.
        scale: Factor of the output.

    Returns:
        o (B, L, H, V) in q's dtype, and the last state (B, H, K, V) in the state's dtype.
    """
    dtype = state_dtype(q.dtype)
    state = first_state(q, v.shape[3], initial_state)
    outputs: list[Tensor] = []
    decay = torch.exp(log_decay.to(dtype))
    steps = zip(*(x.to(dtype).unsqueeze(-1).unbind(1) for x in (q, k, a, b, decay)), v.to(dtype).unbind(1), strict=True)
    for t, (q_t, k_t, a_t, b_t, w_t, v_t) in enumerate(steps):
        if reset is not None:
            state = state.masked_fill(reset[:, t, None, None, None], 0)
        found = (a_t * state).sum(-2, keepdim=True)
        state = w_t * state + b_t * found + k_t * v_t.unsqueeze(-2)
        outputs.append((q_t * state).sum(-2))
    return (scale * torch.stack(outputs, 1)).to(q.dtype), state
