"""The definition of linear_scan: a loop over time that autograd differentiates."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import state_dtype


def linear_scan_reference(
    a: Tensor, b: Tensor, initial_state: Tensor | None, reset: Tensor | None, reverse: bool
) -> tuple[Tensor, Tensor]:
    """Compute ``h_t = a_t * h_{t-1} + b_t`` one step at a time.

    Args:
        a: Decay (B or 1, L or 1, C), real or complex.
        b: Input (B, L, C), same dtype.
        initial_state: State (B, C) before the first step, in the state's dtype; None is zero.
        reset: (B, L) bool; where True the state before that step counts as zero.
        reverse: Run from the last step to the first.

    Returns:
        All states (B, L, C) in b's dtype, and the last one (B, C) in the state's dtype.
    """
    dtype = state_dtype(b.dtype)
    h = torch.zeros_like(b[:, 0], dtype=dtype) if initial_state is None else initial_state
    states: list[Tensor] = []
    steps = list(zip(a.to(dtype).expand(b.shape).unbind(1), b.to(dtype).unbind(1), strict=True))
    order = range(len(steps) - 1, -1, -1) if reverse else range(len(steps))
    for t in order:
        if reset is not None:
            h = h.masked_fill(reset[:, t, None], 0)
        a_t, b_t = steps[t]
        h = a_t * h + b_t
        states.append(h)
    if reverse:
        states.reverse()
    return torch.stack(states, 1).to(b.dtype), h
