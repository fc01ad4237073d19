"""selective_scan's C++ form: everything from softplus to the gate in one pass over time."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import state_dtype
from ..cpu import INT, POINTER, SIZE, function, pointer
from .chunked import CHUNK, check_decay
from .orders import check_orders

_SUFFIXES = {torch.float32: "f32", torch.float64: "f64"}
_GROUPS = [POINTER, SIZE, SIZE, SIZE]  # a sequence's address and its strides over batch, place and group
_PROBLEM = [*_GROUPS * 5, *[POINTER] * 6, *[SIZE] * 6, INT, INT]
_FORWARD = {
    dtype: function(f"scanweave_selective_scan_forward_{suffix}", [*_PROBLEM, *[POINTER] * 3])
    for dtype, suffix in _SUFFIXES.items()
}
_BACKWARD = {
    dtype: function(f"scanweave_selective_scan_backward_{suffix}", [*_PROBLEM, POINTER, *_GROUPS, *[POINTER] * 10])
    for dtype, suffix in _SUFFIXES.items()
}
_STATUS_MEMORY, _STATUS_ORDERS = 2, 3


def side_by_side(x: Tensor | None) -> Tensor | None:
    """Return x contiguous from its third axis on; its strides over batch and time stay."""
    if x is None or x.is_contiguous():
        return x
    expected = 1
    for size, stride in zip(x.shape[:1:-1], x.stride()[:1:-1], strict=True):
        if stride != expected and size != 1:
            return x.contiguous()
        expected *= size
    return x


def rows(x: Tensor | None) -> tuple[int, int, int]:
    """Return a sequence's address and its strides over batch and time."""
    return (0, 0, 0) if x is None else (x.data_ptr(), x.stride(0), x.stride(1))


def _converted(x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Return a sequence (B, L, C) or (B, L, G, K) whose last axis lies side by side; its other strides stay."""
    if x is None:
        return x
    x = x if x.dtype == dtype else x.to(dtype)
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _groups(x: Tensor | None, groups: int) -> tuple[int, int, int, int]:
    """Return a sequence's address and its strides over batch, place and group."""
    if x is None:
        return 0, 0, 0, 0
    return x.data_ptr(), x.stride(0), x.stride(1), x.stride(2) if x.dim() == 4 else x.shape[2] // groups


def _packed(x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    x = x if x is None or x.dtype == dtype else x.to(dtype)
    return x if x is None or x.is_contiguous() else x.contiguous()


class _Problem:
    """The op's tensors in the form the C functions take; it keeps them alive while they are read."""

    def __init__(
        self,
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
        orders: Tensor | None,
        dt_softplus: bool,
        signed: bool,
    ) -> None:
        dtype = state_dtype(u.dtype)
        self.sequences = [_converted(x, dtype) for x in (u, dt, B, C, z)]
        self.parameters = [_packed(x, dtype) for x in (A, D, dt_bias, initial_state)]
        self.marks = [None if x is None else x.contiguous() for x in (reset, orders)]
        self.groups = B.shape[2]
        sizes = (u.shape[0], u.shape[1], A.shape[0], self.groups, A.shape[1], CHUNK)
        self.arguments = (
            *(value for x in self.sequences for value in _groups(x, self.groups)),
            *(pointer(x) for x in (*self.parameters, *self.marks)),
            *sizes,
            dt_softplus,
            signed,
        )


def forward(
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
    orders: Tensor | None,
    dt_softplus: bool,
    signed: bool,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute y, the final state and the states before each chunk; as :func:`.chunked.forward`.

    Raises:
        ValueError: A is not finite, or a final state is not because dt is not, or an order misses a place.
    """
    dtype, (batch, length), (channels, n) = state_dtype(u.dtype), u.shape[:2], A.shape
    problem = _Problem(u, dt, A, B, C, D, z, dt_bias, initial_state, reset, orders, dt_softplus, signed)
    y, final = torch.empty(u.shape, dtype=dtype), torch.empty((batch, channels, n), dtype=dtype)
    before = torch.empty((batch, -(-length // CHUNK) if save else 0, n, channels), dtype=dtype)
    if not u.numel():
        return y.to(u.dtype), final, before
    status = _FORWARD[dtype](*problem.arguments, y.data_ptr(), final.data_ptr(), pointer(before if save else None))
    if status == _STATUS_MEMORY:
        raise MemoryError("selective_scan: no memory for the working set of a slice of channels")
    if status == _STATUS_ORDERS:
        assert orders is not None
        check_orders(orders)
    if status:
        check_decay(A, dt, final)
    return y if u.dtype == dtype else y.to(u.dtype), final, before


def backward(
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
    orders: Tensor | None,
    dt_softplus: bool,
    signed: bool,
    before: Tensor,
    dy: Tensor | None,
    dfinal: Tensor | None,
) -> tuple[Tensor, ...]:
    """Compute the gradients of all tensors, recomputing the states chunk by chunk; as :func:`.chunked.backward`."""
    dtype = state_dtype(u.dtype)
    problem = _Problem(u, dt, A, B, C, D, z, dt_bias, initial_state, reset, orders, dt_softplus, signed)
    states, into = before.contiguous(), _converted(dy, dtype)
    last = None if dfinal is None else dfinal.contiguous()
    inputs = (u, dt, A, B, C, D, z, dt_bias)
    make = torch.empty if u.numel() else torch.zeros
    grads = [make(0 if x is None else x.shape, dtype=dtype) for x in inputs]
    dinitial = torch.empty((u.shape[0], *A.shape), dtype=dtype)
    status = u.numel() and _BACKWARD[dtype](
        *problem.arguments,
        states.data_ptr(),
        *_groups(into, problem.groups),
        pointer(last),
        *(pointer(None if x is None else g) for x, g in zip(inputs, grads, strict=True)),
        dinitial.data_ptr(),
    )
    if status:
        raise MemoryError("selective_scan: no memory for the working set of the backward pass")
    return *(g if x is None else g.to(x.dtype) for x, g in zip(inputs, grads, strict=True)), dinitial
