"""The definition of selective_scan: a loop over time that autograd differentiates."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import state_dtype


def step_size(dt: Tensor, dt_bias: Tensor | None, dt_softplus: bool) -> Tensor:
    """Return ``delta = softplus(dt + dt_bias)`` in the state's dtype; without ``dt_softplus`` the sum itself."""
    delta = dt.to(state_dtype(dt.dtype))
    if dt_bias is not None:
        delta = delta + dt_bias.to(delta.dtype)
    return F.softplus(delta) if dt_softplus else delta


def per_channel(grouped: Tensor, channels: int) -> Tensor:
    """Spread (..., G, N) over the channels, (..., C, N): channel c belongs to group ``c // (C / G)``."""
    return grouped.repeat_interleave(channels // grouped.shape[-2], -2)


def selective_scan_reference(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    initial_state: Tensor | None,
    reset: Tensor | None,
    dt_softplus: bool,
    signed: bool,
) -> tuple[Tensor, Tensor]:
    """Compute ``h_t = a_t * h_{t-1} + delta_t B_t u_t`` and ``y_t = C_t . h_t + D u_t`` one step at a time.

    Args:
        u: Input (B, L, C).
        dt: Step size before bias and softplus, (B, L, C).
        A: Continuous-time decay (C, N).
        B: Input weights (B, L, G, N).
        C: Output weights (B, L, G, N).
        D: Skip weights (C,) or None.
        z: Gate (B, L, C) or None: ``y_t * silu(z_t)``.
        dt_bias: (C,) or None.
        initial_state: State (B, C, N) before the first step, in the state's dtype; None is zero.
        reset: (B, L) bool; where True the state before that step counts as zero.
        dt_softplus: ``delta = softplus(dt + dt_bias)``, else ``dt + dt_bias``.
        signed: ``a = 2 exp(delta A) - 1``, else ``exp(delta A)``.

    Returns:
        y (B, L, C) in u's dtype, and the last state (B, C, N) in the state's dtype.
    """
    dtype, channels = state_dtype(u.dtype), u.shape[2]
    A, x, delta = A.to(dtype), u.to(dtype), step_size(dt, dt_bias, dt_softplus)
    h = x.new_zeros(u.shape[0], *A.shape) if initial_state is None else initial_state
    outputs: list[Tensor] = []
    steps = zip(x.unbind(1), delta.unbind(1), B.to(dtype).unbind(1), C.to(dtype).unbind(1), strict=True)
    for t, (x_t, delta_t, B_t, C_t) in enumerate(steps):
        if reset is not None:
            h = h.masked_fill(reset[:, t, None, None], 0)
        a = torch.exp(delta_t.unsqueeze(-1) * A)
        if signed:
            a = 2 * a - 1
        h = a * h + (delta_t * x_t).unsqueeze(-1) * per_channel(B_t, channels)
        outputs.append((per_channel(C_t, channels) * h).sum(-1))
    y = torch.stack(outputs, 1)
    if D is not None:
        y = y + D.to(dtype) * x
    if z is not None:
        y = y * F.silu(z.to(dtype))
    return y.to(u.dtype), h
