"""cell_scan in PyTorch ops alone, for any cell: the loop in chunks, whose steps the backward pass takes once more."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import state_dtype
from ..library import recording
from .reference import run

#: Steps between two saved states.
STEPS = 32


def forward(
    wx: Tensor, R: Tensor, bias: Tensor | None, initial: Tensor, reset: Tensor | None, cell: str, save: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return y, the final state and, with ``save``, the state before each chunk (B, chunks, S, H, D); else 0 chunks."""
    dtype, weights, state = state_dtype(wx.dtype), R.to(initial.dtype), initial.unbind(1)
    outputs, before = [], []
    for start in range(0, wx.shape[1], STEPS):
        before.append(torch.stack(state, 1))
        part = slice(start, start + STEPS)
        steps = wx[:, part].to(dtype)
        biases = None if bias is None else [bias.to(dtype)] * steps.shape[1]
        found, state = run(steps, weights, biases, state, None if reset is None else reset[:, part], cell)
        outputs += found
    chunks = torch.stack(before, 1) if save else initial.new_empty((wx.shape[0], 0, *initial.shape[1:]))
    return torch.stack(outputs, 1).to(wx.dtype), torch.stack(state, 1), chunks


def backward(
    R: Tensor,
    bias: Tensor | None,
    initial: Tensor,
    reset: Tensor | None,
    cell: str,
    wx: Tensor,
    y: Tensor,
    before: Tensor,
    dy: Tensor | None,
    dfinal: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of wx, of the initial state and of each step's recurrent product, which has wx's shape."""
    dtype = state_dtype(wx.dtype)
    weights = R.detach().to(dtype)
    dstate = torch.zeros_like(initial) if dfinal is None else dfinal
    dwx, dproduct = [], []
    for chunk in reversed(range(before.shape[1])):
        part = slice(chunk * STEPS, (chunk + 1) * STEPS)
        starts, steps = None if reset is None else reset[:, part], wx[:, part].to(dtype)
        biases = torch.zeros_like(steps) if bias is None else bias.to(dtype).expand_as(steps)
        with recording():
            leaves = [x.detach().requires_grad_() for x in (steps, biases, before[:, chunk])]
            outputs, last = run(leaves[0], weights, leaves[1].unbind(1), leaves[2].unbind(1), starts, cell)
            y_part = torch.stack(outputs, 1)
            into = torch.zeros_like(y_part) if dy is None else dy[:, part].to(dtype)
            one, two, dstate = torch.autograd.grad((y_part, torch.stack(last, 1)), leaves, (into, dstate))
        dwx.append(one)
        dproduct.append(two)
    return torch.cat(dwx[::-1], 1), dstate, torch.cat(dproduct[::-1], 1)
