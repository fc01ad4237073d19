"""The definition of mlstm_scan: a loop over time that autograd differentiates."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import state_dtype


class MLSTMState(NamedTuple):
    """The state of :func:`mlstm_scan`; C and n are scaled by ``exp(-m)``."""

    C: Tensor  # (B, H, K, V)
    n: Tensor  # (B, H, K)
    m: Tensor  # (B, H)


def hidden(numerator: Tensor, normaliser: Tensor, m: Tensor) -> Tensor:
    """Return ``numerator / max(|normaliser|, exp(-m))``; the last two lack the numerator's last axis."""
    # exp(-m) must not overflow: against it the numerator is nothing long before.
    least = torch.exp(-m.clamp(min=-80 if m.dtype == torch.float32 else -600))
    return numerator / torch.maximum(normaliser.abs(), least).unsqueeze(-1)


def mlstm_scan_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    input_gate: Tensor,
    forget_gate: Tensor,
    initial_state: MLSTMState,
    reset: Tensor | None,
    scale: float,
) -> tuple[Tensor, MLSTMState]:
    """Compute ``C_t = f_t C_{t-1} + i_t k_t v_t^T``, ``n_t = f_t n_{t-1} + i_t k_t`` and h one step at a time.

    Args:
        q: Queries (B, L, H, K).
        k: Keys (B, L, H, K).
        v: Values (B, L, H, V).
        input_gate: ``log i`` (B, L, H).
        forget_gate: (B, L, H); ``f`` is its logistic function.
        initial_state: The state before the first step, in the state's dtype.
        reset: (B, L) bool; where True the state before that step counts as zero.
        scale: Factor of the queries.

    Returns:
        h (B, L, H, V) in q's dtype, and the last state in the state's dtype.
    """
    dtype = state_dtype(q.dtype)
    C, n, m = initial_state
    log_f = F.logsigmoid(forget_gate.to(dtype))
    outputs: list[Tensor] = []
    steps = zip(*(x.to(dtype).unbind(1) for x in (q, k, v, input_gate, log_f)), strict=True)
    for t, (q_t, k_t, v_t, i_t, f_t) in enumerate(steps):
        if reset is not None:
            start = reset[:, t, None]
            C, n, m = (
                C.masked_fill(start[..., None, None], 0),
                n.masked_fill(start[..., None], 0),
                m.masked_fill(start, 0),
            )
        after = torch.maximum(f_t + m, i_t)
        f, i, m = torch.exp(f_t + m - after), torch.exp(i_t - after), after
        written = i.unsqueeze(-1) * k_t
        C = f[..., None, None] * C + written.unsqueeze(-1) * v_t.unsqueeze(-2)
        n = f.unsqueeze(-1) * n + written
        query = scale * q_t
        outputs.append(hidden((query.unsqueeze(-1) * C).sum(-2), (query * n).sum(-1), m))
    return torch.stack(outputs, 1).to(q.dtype), MLSTMState(C, n, m)
