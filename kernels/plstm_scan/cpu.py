"""plstm_scan's C++ form on a grid: node after node, the states of the edges in the first caches."""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct

import torch
from torch import Tensor

from ..checks import state_dtype
from ..cpu import POINTER, function, pointer
from .bands import BAND, bands
from .walk import Call

_SUFFIXES = {torch.float32: "f32", torch.float64: "f64"}
# As the structs Problem, Outputs, Incoming and Gradients of cpu.cpp have them.
_PROBLEM, _OUTPUTS, _INCOMING, _GRADIENTS = Struct("=46qd"), Struct("=10q"), Struct("=10q"), Struct("=37q")
_FORWARD = {
    dtype: function(f"scanweave_plstm_grid_forward_{suffix}", [POINTER] * 2) for dtype, suffix in _SUFFIXES.items()
}
_BACKWARD = {
    dtype: function(f"scanweave_plstm_grid_backward_{suffix}", [POINTER] * 3) for dtype, suffix in _SUFFIXES.items()
}


def _packed(x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if x is None else x.to(dtype).resolve_neg().contiguous()


def _nodes(x: Tensor | None, flips: tuple[bool, bool]) -> tuple[int, ...]:
    """Return the address of the first node to visit, and the strides over batch, rows, columns and heads."""
    if x is None:
        return (0,) * 5
    stride, address = list(x.stride()[:4]), x.data_ptr()
    for axis, flipped in enumerate(flips, start=1):
        if flipped:
            address += (x.shape[axis] - 1) * stride[axis] * x.element_size()
            stride[axis] = -stride[axis]
    return address, *stride


def _edges(x: Tensor | None, flipped: bool) -> tuple[int, int]:
    """Return the address of the first edge to visit of (B, N, H, K, V), and the stride over N."""
    if x is None:
        return 0, 0
    step = x.stride(1)
    return (x.data_ptr() + (x.shape[1] - 1) * step * x.element_size(), -step) if flipped else (x.data_ptr(), step)


class _Problem:
    """The op's tensors in the form the C functions take; it keeps them alive while they are read."""

    def __init__(self, call: Call) -> None:
        q, _, v = call.nodes[:3]
        dtype = state_dtype(q.dtype)
        nodes = [_packed(x, dtype) for x in call.nodes]
        states = [_packed(x, dtype) for x in call.entering]
        self.keep, self.dtype = (nodes, states), dtype
        ends = [_edges(x, flipped) for x, flipped in zip(states, call.flips, strict=True)]
        self.packed = _PROBLEM.pack(
            *(word for x in nodes for word in _nodes(x, call.flips)),
            *(address for address, _ in ends),
            *(step for _, step in ends),
            *q.shape,
            v.shape[-1],
            BAND,
            call.scale,
        )


def forward(call: Call, save: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return o, the states that leave the grid along its rows and its columns, and with ``save`` those into bands."""
    q, _, v = call.nodes[:3]
    problem = _Problem(call)
    batch, rows, columns, heads, keys = q.shape
    dtype, matrix = problem.dtype, (heads, keys, v.shape[-1])
    o = torch.empty((*q.shape[:4], v.shape[-1]), dtype=dtype)
    right = torch.empty((batch, rows, *matrix), dtype=dtype)
    bottom = torch.empty((batch, columns, *matrix), dtype=dtype)
    before = torch.empty((batch, bands(rows) if save else 0, columns, *matrix), dtype=dtype)
    (r, r_x), (b, b_y) = (_edges(x, flipped) for x, flipped in zip((right, bottom), call.flips, strict=True))
    outputs = _OUTPUTS.pack(*_nodes(o, call.flips), r, b, r_x, b_y, pointer(before if save else None))
    _check(_FORWARD[dtype](problem.packed, outputs) if o.numel() else 0)
    return o.to(q.dtype), right, bottom, before


def backward(call: Call, before: Tensor, into: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    """Return the gradients of the tensors on nodes and of the states that enter, empty where one is None."""
    problem = _Problem(call)
    dtype = problem.dtype
    grads = [torch.zeros(x.shape, dtype=dtype) for x in call.nodes]
    entering = [torch.empty(0 if x is None else x.shape, dtype=dtype) for x in call.entering]
    do, *leaving = (_packed(x, dtype) for x in into)
    (r, r_x), (b, b_y) = (_edges(x, flipped) for x, flipped in zip(leaving, call.flips, strict=True))
    states = before.contiguous()
    incoming = _INCOMING.pack(states.data_ptr(), *_nodes(do, call.flips), r, b, r_x, b_y)
    ends = (
        0 if x is None else _edges(grad, flipped)[0]
        for x, grad, flipped in zip(call.entering, entering, call.flips, strict=True)
    )
    gradients = _GRADIENTS.pack(*(word for x in grads for word in _nodes(x, call.flips)), *ends)
    _check(_BACKWARD[dtype](problem.packed, incoming, gradients) if do is None or do.numel() else 0)
    return *(g.to(x.dtype) for g, x in zip(grads, call.nodes, strict=True)), *entering


def _check(status: int) -> None:
    if status:
        raise MemoryError("plstm_scan_2d: no memory for the states of a band of rows")
