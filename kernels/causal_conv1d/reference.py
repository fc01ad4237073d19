"""The definition of causal_conv1d: a loop over time that autograd differentiates."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import state_dtype


def causal_conv1d_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, initial_state: Tensor | None, reset: Tensor | None, silu: bool
) -> tuple[Tensor, Tensor]:
    """Compute ``y_t = bias + sum_j weight[W-1-j] x_{t-j}`` one step at a time.

    Args:
        x: Input (B, L, C).
        weight: Filters (C, W).
        bias: (C,), or None.
        initial_state: The W - 1 inputs before the first step, oldest first, (B, W - 1, C); zeros if None.
        reset: (B, L) bool; where True the inputs before that step count as zero.
        silu: Whether y goes through SiLU.

    Returns:
        y (B, L, C) in x's dtype, and the last W - 1 inputs in the state's dtype.
    """
    dtype = state_dtype(x.dtype)
    filters = weight.to(dtype).t()
    before = x.new_zeros((x.shape[0], len(filters) - 1, x.shape[2]), dtype=dtype)
    if initial_state is not None:
        before = initial_state.to(dtype)
    outputs: list[Tensor] = []
    for t, now in enumerate(x.to(dtype).unbind(1)):
        if reset is not None:
            before = before.masked_fill(reset[:, t, None, None], 0)
        seen = torch.cat([before, now.unsqueeze(1)], 1)
        y = (seen * filters).sum(1)
        y = y if bias is None else y + bias.to(dtype)
        outputs.append(F.silu(y) if silu else y)
        before = seen[:, 1:]
    return torch.stack(outputs, 1).to(x.dtype), before
