"""newton_scan's definition: the cell as a plain loop over time."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import state_dtype
from .cells import find_cell


def newton_scan_reference(
    wx: Tensor,
    r: Tensor,
    bias: Tensor | None,
    initial: Tensor,
    reset: Tensor | None,
    cell: str,
) -> tuple[Tensor, Tensor]:
    """Run the cell step by step.

    Args:
        wx: Gates' pre-activations (B, L, G, C).
        r: Recurrent weights (R, C).
        bias: Added to wx (G, C), or None.
        initial: State before the first step (B, S, C), in the state's dtype.
        reset: (B, L) bool; where True the state before that step counts as zero.
        cell: The cell's name.

    Returns:
        y (B, L, C) in wx's dtype and the state after the last step (B, S, C).
    """
    dtype, step = state_dtype(wx.dtype), find_cell(cell).step
    a, r = wx.to(dtype), r.to(dtype)
    if bias is not None:
        a = a + bias.to(dtype)
    state, outputs = initial.unbind(1), []
    for t, a_t in enumerate(a.unbind(1)):
        if reset is not None:
            state = tuple(part.masked_fill(reset[:, t, None], 0) for part in state)
        state = step(a_t, r, state)
        outputs.append(state[0])
    return torch.stack(outputs, 1).to(wx.dtype), torch.stack(state, 1)
