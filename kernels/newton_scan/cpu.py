"""newton_scan's C++ form: the recurrence itself, one pass over time forward and one back, without iterations."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..checks import state_dtype
from ..cpu import POINTER, SIZE, function, pointer
from ..selective_scan.cpu import rows, side_by_side
from .cells import CELLS

_SUFFIXES = {torch.float32: "f32", torch.float64: "f64"}
_ROWS = [POINTER, SIZE, SIZE]  # a sequence's address and its strides over batch and time
_PROBLEM = [*_ROWS, *[POINTER] * 4, *[SIZE] * 3]


def _functions(which: str, rest: list[type]) -> dict[tuple[str, torch.dtype], Callable[..., int]]:
    return {
        (cell, dtype): function(f"scanweave_newton_scan_{which}_{cell}_{suffix}", [*_PROBLEM, *rest])
        for cell in CELLS
        for dtype, suffix in _SUFFIXES.items()
    }


_FORWARD = _functions("forward", [POINTER] * 3)
_BACKWARD = _functions("backward", [POINTER, *_ROWS, *[POINTER] * 5])


class _Problem:
    """The op's tensors in the form the C functions take; it keeps them alive while they are read."""

    def __init__(self, wx: Tensor, r: Tensor, bias: Tensor | None, initial: Tensor, reset: Tensor | None) -> None:
        dtype = initial.dtype
        self.wx = side_by_side(wx.to(dtype))
        self.parameters = [x if x is None else x.to(dtype).contiguous() for x in (r, bias, initial)]
        self.reset = None if reset is None else reset.contiguous()
        self.arguments = (
            *rows(self.wx),
            *(pointer(x) for x in self.parameters),
            pointer(self.reset),
            wx.shape[0],
            wx.shape[1],
            wx.shape[3],
        )


def forward(
    wx: Tensor,
    r: Tensor,
    bias: Tensor | None,
    initial: Tensor,
    reset: Tensor | None,
    cell: str,
    tol: float,
    max_iterations: int,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute y, the final state and, where ``save``, all states; exact, whatever ``tol``."""
    dtype, (batch, length, _, channels) = state_dtype(wx.dtype), wx.shape
    problem = _Problem(wx, r, bias, initial, reset)
    y, final = torch.empty((batch, length, channels), dtype=dtype), torch.empty(initial.shape, dtype=dtype)
    states = torch.empty((batch, length if save else 0, *initial.shape[1:]), dtype=dtype)
    _FORWARD[cell, dtype](*problem.arguments, y.data_ptr(), final.data_ptr(), pointer(states if save else None))
    return y.to(wx.dtype), final, states


def backward(
    wx: Tensor,
    r: Tensor,
    bias: Tensor | None,
    initial: Tensor,
    reset: Tensor | None,
    cell: str,
    states: Tensor,
    dy: Tensor | None,
    dfinal: Tensor | None,
) -> tuple[Tensor, ...]:
    """Compute the gradients of wx, r, bias and the initial state in one pass back."""
    dtype = state_dtype(wx.dtype)
    problem = _Problem(wx, r, bias, initial, reset)
    states, into = states.contiguous(), None if dy is None else side_by_side(dy.to(dtype))
    last = None if dfinal is None else dfinal.contiguous()
    make = torch.empty if wx.numel() else torch.zeros
    shapes = wx.shape, r.shape, wx.shape[2:], initial.shape
    dwx, dr, dbias, dinitial = (make(shape, dtype=dtype) for shape in shapes)
    status = wx.numel() and _BACKWARD[cell, dtype](
        *problem.arguments,
        states.data_ptr(),
        *rows(into),
        pointer(last),
        *(x.data_ptr() for x in (dwx, dr, dbias, dinitial)),
    )
    if status:
        raise MemoryError(f"newton_scan: no memory for the sums of the backward pass (status {status})")
    bias_gradient = r.new_empty(0) if bias is None else dbias.to(bias.dtype)
    return dwx.to(wx.dtype), dr.to(r.dtype), bias_gradient, dinitial
