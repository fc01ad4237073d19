"""cell_scan's C++ form: each head's recurrent matrix stays in the caches while some rows go through time."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import state_dtype
from ..cpu import POINTER, SIZE, function, pointer
from .cells import find_cell

#: The cells that it knows, by their number in C++.
CELLS = ("elman", "lstm", "gru", "slstm", "slstm_exp")

_SUFFIXES = {torch.float32: "f32", torch.float64: "f64"}
_CALL = [SIZE, POINTER, *[SIZE] * 4, *[POINTER] * 4, *[SIZE] * 4]
_FORWARD = {
    dtype: function(f"scanweave_cell_scan_forward_{suffix}", [*_CALL, *[POINTER] * 3])
    for dtype, suffix in _SUFFIXES.items()
}
_BACKWARD = {
    dtype: function(f"scanweave_cell_scan_backward_{suffix}", [*_CALL, POINTER, *[SIZE] * 3, *[POINTER] * 5])
    for dtype, suffix in _SUFFIXES.items()
}


def _units_together(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return x in a dtype, with its last axis contiguous."""
    x = x.to(dtype)
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


class _Call:
    """The op's tensors in the form the C functions take; it keeps them alive while they are read."""

    def __init__(
        self, wx: Tensor, R: Tensor, bias: Tensor | None, initial: Tensor, reset: Tensor | None, cell: str
    ) -> None:
        dtype, (batch, length, heads, _, size) = state_dtype(wx.dtype), wx.shape
        self.inputs = _units_together(wx, dtype)
        others = (R.to(dtype), None if bias is None else bias.to(dtype), initial, reset)
        self.others = [None if x is None else x.contiguous() for x in others]
        self.arguments = (
            CELLS.index(cell),
            self.inputs.data_ptr(),
            *self.inputs.stride()[:4],
            *map(pointer, self.others),
            batch,
            length,
            heads,
            size,
        )


def forward(
    wx: Tensor, R: Tensor, bias: Tensor | None, initial: Tensor, reset: Tensor | None, cell: str, save: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute y, the final state and, with ``save``, what backward reads of each step (B, L, H, planes, D)."""
    dtype, (batch, length, heads, _, size) = state_dtype(wx.dtype), wx.shape
    y, final = torch.empty((batch, length, heads, size), dtype=dtype), torch.empty(initial.shape, dtype=dtype)
    trace = torch.empty((batch, length if save else 0, heads, find_cell(cell).planes, size), dtype=dtype)
    if wx.numel():
        call = _Call(wx, R, bias, initial, reset, cell)
        if _FORWARD[dtype](*call.arguments, y.data_ptr(), final.data_ptr(), pointer(trace if trace.numel() else None)):
            raise MemoryError("cell_scan: no memory for a head's recurrent matrix and states")
    return y.to(wx.dtype), final, trace


def backward(
    R: Tensor,
    bias: Tensor | None,
    initial: Tensor,
    reset: Tensor | None,
    cell: str,
    wx: Tensor,
    y: Tensor,
    trace: Tensor,
    dy: Tensor | None,
    dfinal: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Compute the gradients of wx and of the initial state, in the state's dtype."""
    dtype = state_dtype(wx.dtype)
    dwx, dinitial = torch.empty(wx.shape, dtype=dtype), torch.empty(initial.shape, dtype=dtype)
    if wx.numel():
        call = _Call(wx, R, bias, initial, reset, cell)
        into = None if dy is None else _units_together(dy, dtype)
        outputs, steps = y.to(dtype).contiguous(), trace.contiguous()
        last = None if dfinal is None else dfinal.contiguous()
        if _BACKWARD[dtype](
            *call.arguments,
            pointer(into),
            *((0, 0, 0) if into is None else into.stride()[:3]),
            outputs.data_ptr(),
            steps.data_ptr(),
            pointer(last),
            dwx.data_ptr(),
            dinitial.data_ptr(),
        ):
            raise MemoryError("cell_scan: no memory for a head's recurrent matrix and gradients")
    return dwx, dinitial
