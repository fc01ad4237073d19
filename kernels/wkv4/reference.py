"""wkv4's definition: RWKV-4's weighted average as a plain loop over time."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import state_dtype


def empty_state(k: Tensor) -> Tensor:
    """Return the state before any step, (B, 3, C): numerator and denominator 0, maximum -inf."""
    state = k.new_zeros((k.shape[0], 3, k.shape[2]), dtype=state_dtype(k.dtype))
    state[:, 2] = -torch.inf
    return state


def wkv4_reference(
    k: Tensor, v: Tensor, w: Tensor, u: Tensor, initial_state: Tensor | None, reset: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Average values with weights that fade with time, step by step.

    With ``P`` the sum of ``e^(-(t-1-i) w + k_i) v_i`` over ``i < t`` and ``Q`` that of the weights alone,
    ``y_t = (P + e^(u + k_t) v_t) / (Q + e^(u + k_t))``. The state holds ``p = P e^-m``, ``q = Q e^-m`` and the largest
    exponent ``m_t = max(m_{t-1} - w, k_t)``, so that no exponential exceeds 1.

    Args:
        k: Exponents of the weights (B, L, C).
        v: Values (B, L, C).
        w: Rate of decay (C,).
        u: What the current step's exponent has more (C,).
        initial_state: p, q and m before the first step (B, 3, C); empty if None.
        reset: (B, L) bool; where True the state before that step counts as empty.

    Returns:
        y (B, L, C) in k's dtype and the state after the last step (B, 3, C).

    Source:
        Peng et al., RWKV: reinventing RNNs for the Transformer era (2023), equations 16 to 19 and appendix D.
    """
    dtype, empty = state_dtype(k.dtype), empty_state(k)
    w, u = w.to(dtype), u.to(dtype)
    p, q, m = (empty if initial_state is None else initial_state).unbind(1)
    outputs = []
    for t, (k_t, v_t) in enumerate(zip(k.to(dtype).unbind(1), v.to(dtype).unbind(1), strict=True)):
        if reset is not None:
            starts = reset[:, t, None]
            p, q, m = (torch.where(starts, x, y) for x, y in zip(empty.unbind(1), (p, q, m), strict=True))
        # y does not depend on the exponent that both sums are scaled by.
        largest = torch.maximum(m, u + k_t).detach()
        past, now = torch.exp(m - largest), torch.exp(u + k_t - largest)
        outputs.append((past * p + now * v_t) / (past * q + now))
        after = torch.maximum(m - w, k_t)
        # In this order the rounding of m - w, which would add up over slow decays, drops out.
        decay, gain = torch.exp((m - after) - w), torch.exp(k_t - after)
        p, q, m = decay * p + gain * v_t, decay * q + gain, after
    return torch.stack(outputs, 1).to(k.dtype), torch.stack([p, q, m], 1)
