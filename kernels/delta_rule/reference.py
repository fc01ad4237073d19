"""The definition of delta_rule: a loop over time that autograd differentiates."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import state_dtype
from ..matrix_state import first_state


def delta_rule_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None,
    initial_state: Tensor | None,
    reset: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Decay the state, correct what it holds under each key, ``S += beta k (v - S^T k)^T``, and read it.

    Args:
        q: Queries (B, L, H, K).
        k: Keys (B, L, n, H, K): n corrections in each step.
        v: Values (B, L, n, H, V).
        beta: Strengths (B, L, n, H).
        log_decay: (B, L, H) or None for no decay; it acts once a step, before the first correction.
        initial_state: State (B, H, K, V) before the first step, in the state's dtype; None is zero.
        reset: (B, L) bool; where True the state before that step counts as zero.
        scale: Factor of the output.

    Returns:
        o (B, L, H, V) in q's dtype, and the last state (B, H, K, V) in the state's dtype.
    """
    dtype = state_dtype(q.dtype)
    state = first_state(q, v.shape[4], initial_state)
    decay = None if log_decay is None else torch.exp(log_decay.to(dtype)).unbind(1)
    outputs: list[Tensor] = []
    for t, (q_t, k_t, v_t, beta_t) in enumerate(zip(*(x.to(dtype).unbind(1) for x in (q, k, v, beta)), strict=True)):
        if reset is not None:
            state = state.masked_fill(reset[:, t, None, None, None], 0)
        if decay is not None:
            state = decay[t][..., None, None] * state
        for k_i, v_i, beta_i in zip(k_t.unbind(1), v_t.unbind(1), beta_t.unbind(1), strict=True):
            key = k_i.unsqueeze(-1)
            error = v_i - (key * state).sum(-2)
            state = state + key * (beta_i.unsqueeze(-1) * error).unsqueeze(-2)
        outputs.append((q_t.unsqueeze(-1) * state).sum(-2))
    return (scale * torch.stack(outputs, 1)).to(q.dtype), state
