"""wkv4's C++ form: one pass over time, forward and back, with the state in registers."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import state_dtype
from ..cpu import POINTER, SIZE, function, pointer
from ..selective_scan.cpu import rows, side_by_side
from .chunked import check_rate
from .chunks import STEPS

_SUFFIXES = {torch.float32: "f32", torch.float64: "f64"}
_ROWS = [POINTER, SIZE, SIZE]  # a sequence's address and its strides over batch and time
_PROBLEM = [*_ROWS * 2, *[POINTER] * 4, *[SIZE] * 4]
_FORWARD = {
    dtype: function(f"scanweave_wkv4_forward_{suffix}", [*_PROBLEM, *[POINTER] * 3])
    for dtype, suffix in _SUFFIXES.items()
}
_BACKWARD = {
    dtype: function(f"scanweave_wkv4_backward_{suffix}", [*_PROBLEM, POINTER, *_ROWS, *[POINTER] * 6])
    for dtype, suffix in _SUFFIXES.items()
}


class _Problem:
    """The op's tensors in the form the C functions take; it keeps them alive while they are read."""

    def __init__(
        self, k: Tensor, v: Tensor, w: Tensor, u: Tensor, initial_state: Tensor | None, reset: Tensor | None
    ) -> None:
        dtype = state_dtype(k.dtype)
        self.sequences = [side_by_side(x.to(dtype)) for x in (k, v)]
        self.parameters = [x if x is None else x.to(dtype).contiguous() for x in (w, u, initial_state)]
        self.reset = None if reset is None else reset.contiguous()
        self.arguments = (
            *(value for x in self.sequences for value in rows(x)),
            *(pointer(x) for x in self.parameters),
            pointer(self.reset),
            *k.shape,
            STEPS,
        )


def forward(
    k: Tensor, v: Tensor, w: Tensor, u: Tensor, initial_state: Tensor | None, reset: Tensor | None, save: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute y, the final state and the states before each chunk; as :func:`.chunked.forward`."""
    dtype, (batch, length, channels) = state_dtype(k.dtype), k.shape
    problem = _Problem(k, v, w, u, initial_state, reset)
    y, final = torch.empty(k.shape, dtype=dtype), torch.empty((batch, 3, channels), dtype=dtype)
    before = torch.empty((batch, -(-length // STEPS) if save else 0, 3, channels), dtype=dtype)
    if _FORWARD[dtype](*problem.arguments, y.data_ptr(), final.data_ptr(), pointer(before if save else None)):
        check_rate(w)
    return y.to(k.dtype), final, before


def backward(
    k: Tensor,
    v: Tensor,
    w: Tensor,
    u: Tensor,
    initial_state: Tensor | None,
    reset: Tensor | None,
    before: Tensor,
    dy: Tensor | None,
    dfinal: Tensor | None,
) -> tuple[Tensor, ...]:
    """Compute the gradients, recomputing the states chunk by chunk; as :func:`.chunked.backward`."""
    dtype = state_dtype(k.dtype)
    problem = _Problem(k, v, w, u, initial_state, reset)
    states, into = before.contiguous(), None if dy is None else side_by_side(dy.to(dtype))
    last = None if dfinal is None else dfinal.contiguous()
    make = torch.empty if k.numel() else torch.zeros
    grads = [make(x.shape, dtype=dtype) for x in (k, v, w, u)]
    dinitial = torch.empty(0 if initial_state is None else initial_state.shape, dtype=dtype)
    status = k.numel() and _BACKWARD[dtype](
        *problem.arguments,
        states.data_ptr(),
        *rows(into),
        pointer(last),
        *map(pointer, grads),
        pointer(None if initial_state is None else dinitial),
    )
    if status:
        raise MemoryError(f"wkv4: no memory for the working set of the backward pass (status {status})")
    return *(g.to(x.dtype) for g, x in zip(grads, (k, v, w, u), strict=True)), dinitial
