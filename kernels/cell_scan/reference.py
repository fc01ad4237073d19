"""cell_scan's definition: recurrent cells with a matrix per head and gate, as a plain loop over time."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ..checks import state_dtype
from .cells import States, find_cell


def run(
    wx: Tensor, R: Tensor, biases: Iterable[Tensor] | None, state: States, reset: Tensor | None, cell: str
) -> tuple[list[Tensor], States]:
    """Take the steps of wx (B, L, H, G, D), in the state's dtype.

    Args:
        wx: Gates' pre-activations.
        R: Recurrent weights (H, G, D, D).
        biases: What each step's recurrent product has more, (H, G, D) or (B, H, G, D).
        state: Tensors (B, H, D) before the first step.
        reset: (B, L) bool or None.
        cell: The cell's name.

    Returns:
        The outputs (B, H, D) and the state after the last step.
    """
    step, weights = find_cell(cell).step, R.flatten(1, 2).transpose(1, 2)
    starts = None if reset is None else reset[..., None, None].unbind(1)
    added = None if biases is None else iter(biases)
    outputs = []
    for t, wx_t in enumerate(wx.unbind(1)):
        if starts is not None:
            state = tuple(part.masked_fill(starts[t], 0) for part in state)
        # R[h, g] @ h_{t-1} of each batch entry, all gates of a head in one product.
        product = torch.bmm(state[0].transpose(0, 1), weights).transpose(0, 1).unflatten(2, R.shape[1:3])
        state = step(wx_t, product if added is None else product + next(added), state)
        outputs.append(state[0])
    return outputs, state


def cell_scan_reference(
    wx: Tensor, R: Tensor, bias: Tensor | None, initial: Tensor, reset: Tensor | None, cell: str
) -> tuple[Tensor, Tensor]:
    """Run a recurrent cell over time, step by step, each head with its own recurrent weights.

    ``s_t = step(wx_t, R h_{t-1} + bias, s_{t-1})`` with the cell's elementwise step; ``h_t``, the first tensor of the
    state ``s_t``, is the output.

    Args:
        wx: Gates' pre-activations from the input (B, L, H, G, D).
        R: Recurrent weights (H, G, D, D), the output's index before the input's.
        bias: Added to the recurrent product (H, G, D), or None.
        initial: State before the first step (B, S, H, D), its tensors in the cell's order.
        reset: (B, L) bool; where True the state before that step counts as zero.
        cell: The cell's name.

    Returns:
        y (B, L, H, D) in wx's dtype and the state after the last step (B, S, H, D).

    Source:
        Pöppel et al., FlashRNN (2024), section 3; each cell's own paper in :mod:`.cells`.
    """
    dtype = state_dtype(wx.dtype)
    biases = None if bias is None else [bias.to(dtype)] * wx.shape[1]
    outputs, state = run(wx.to(dtype), R.to(dtype), biases, initial.to(dtype).unbind(1), reset, cell)
    return torch.stack(outputs, 1).to(wx.dtype), torch.stack(state, 1)
