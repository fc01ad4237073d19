"""plstm_scan's C++ form on a grid: node after node, the states of the edges in the first caches."""

from __future__ import annotations

from struct import Struct

import torch
from torch import Tensor

from ..checks import state_dtype
from ..cpu import POINTER, function, pointer
from .bands import BAND, bands

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

    def __init__(
        self, nodes: tuple[Tensor, ...], edges: tuple[Tensor | None, ...], flips: tuple[bool, bool], scale: float
    ):
        q, _, v = nodes[:3]
        dtype = state_dtype(q.dtype)
        kept, states = [_packed(x, dtype) for x in nodes], [_packed(x, dtype) for x in edges]
        self.keep, self.flips, self.dtype = (kept, states), flips, dtype
        ends = [_edges(x, flipped) for x, flipped in zip(states, flips, strict=True)]
        self.packed = _PROBLEM.pack(
            *(word for x in kept for word in _nodes(x, flips)),
            *(address for address, _ in ends),
            *(step for _, step in ends),
            *q.shape,
            v.shape[-1],
            BAND,
            scale,
        )


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    source: Tensor,
    transition: Tensor,
    mark: Tensor,
    direct: Tensor,
    left: Tensor | None,
    top: Tensor | None,
    flip_rows: bool,
    flip_columns: bool,
    scale: float,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return o, the states that leave the grid along its rows and its columns, and with ``save`` those into bands."""
    flips = (flip_rows, flip_columns)
    problem = _Problem((q, k, v, source, transition, mark, direct), (left, top), flips, scale)
    batch, rows, columns, heads, keys = q.shape
    dtype, matrix = problem.dtype, (heads, keys, v.shape[-1])
    o = torch.empty((*q.shape[:4], v.shape[-1]), dtype=dtype)
    right = torch.empty((batch, rows, *matrix), dtype=dtype)
    bottom = torch.empty((batch, columns, *matrix), dtype=dtype)
    before = torch.empty((batch, bands(rows) if save else 0, columns, *matrix), dtype=dtype)
    (r, r_x), (b, b_y) = _edges(right, flip_rows), _edges(bottom, flip_columns)
    outputs = _OUTPUTS.pack(*_nodes(o, flips), r, b, r_x, b_y, pointer(before if save else None))
    _check(_FORWARD[dtype](problem.packed, outputs) if o.numel() else 0)
    return o.to(q.dtype), right, bottom, before


def backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    source: Tensor,
    transition: Tensor,
    mark: Tensor,
    direct: Tensor,
    left: Tensor | None,
    top: Tensor | None,
    flip_rows: bool,
    flip_columns: bool,
    scale: float,
    before: Tensor,
    do: Tensor | None,
    dright: Tensor | None,
    dbottom: Tensor | None,
) -> tuple[Tensor, ...]:
    """Return the gradients of the seven tensors on nodes and of the states that enter, empty where one is None."""
    nodes, flips = (q, k, v, source, transition, mark, direct), (flip_rows, flip_columns)
    problem = _Problem(nodes, (left, top), flips, scale)
    dtype = problem.dtype
    grads = [torch.zeros(x.shape, dtype=dtype) for x in nodes]
    entering = [torch.empty(0 if x is None else x.shape, dtype=dtype) for x in (left, top)]
    into, right, bottom = (_packed(x, dtype) for x in (do, dright, dbottom))
    (r, r_x), (b, b_y) = _edges(right, flip_rows), _edges(bottom, flip_columns)
    states = before.contiguous()
    incoming = _INCOMING.pack(states.data_ptr(), *_nodes(into, flips), r, b, r_x, b_y)
    ends = (
        0 if x is None else _edges(grad, flipped)[0]
        for x, grad, flipped in zip((left, top), entering, flips, strict=True)
    )
    gradients = _GRADIENTS.pack(*(word for x in grads for word in _nodes(x, flips)), *ends)
    _check(_BACKWARD[dtype](problem.packed, incoming, gradients) if v.numel() else 0)
    return *(g.to(x.dtype) for g, x in zip(grads, nodes, strict=True)), *entering


def _check(status: int) -> None:
    if status:
        raise MemoryError("plstm_scan: no memory for the states of a band of rows")
