"""ttt_linear's C++ form."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from ..checks import state_dtype
from ..cpu import POINTER, SIZE, function, pointer
from ..selective_scan.cpu import rows, side_by_side
from .reference import check_position, saved_slots

_SUFFIXES = {torch.float32: "f32", torch.float64: "f64"}
_ROWS = [POINTER, SIZE, SIZE]  # a sequence's address and its strides over batch and time
_CALL = [*_ROWS * 4, *[POINTER] * 6, *[SIZE] * 5, ctypes.c_double]
_FORWARD = {
    dtype: function(f"scanweave_ttt_linear_forward_{suffix}", [*_CALL, *[POINTER] * 3])
    for dtype, suffix in _SUFFIXES.items()
}
_BACKWARD = {
    dtype: function(f"scanweave_ttt_linear_backward_{suffix}", [*_CALL, POINTER, *_ROWS, *[POINTER] * 9])
    for dtype, suffix in _SUFFIXES.items()
}
_NO_MEMORY = 2


class _Call:
    """The op's tensors in the form the C functions take; it keeps them alive while they are read."""

    def __init__(
        self,
        sequences: tuple[Tensor, ...],
        parameters: tuple[Tensor | None, ...],
        position: Tensor | None,
        reset: Tensor | None,
        mini_batch: int,
        epsilon: float,
    ) -> None:
        dtype = state_dtype(sequences[0].dtype)
        self.sequences = [side_by_side(x.to(dtype)) for x in sequences]
        others = [None if x is None else x.to(dtype) for x in parameters]
        self.others = [None if x is None else x.contiguous() for x in (*others, position, reset)]
        self.arguments = (
            *(value for x in self.sequences for value in rows(x)),
            *(pointer(x) for x in self.others),
            *sequences[0].shape,
            mini_batch,
            epsilon,
        )


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    eta: Tensor,
    weights: Tensor,
    ln_weight: Tensor,
    ln_bias: Tensor,
    initial_state: Tensor | None,
    position: Tensor | None,
    reset: Tensor | None,
    mini_batch: int,
    epsilon: float,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute o, the final state and the weights before mini-batches; as :func:`.chunked.forward`."""
    dtype, (batch, length, heads, _) = state_dtype(q.dtype), q.shape
    parameters = (weights, ln_weight, ln_bias, initial_state)
    call = _Call((q, k, v, eta), parameters, position, reset, mini_batch, epsilon)
    o = torch.empty(q.shape, dtype=dtype)
    final = torch.empty((batch, heads, 2, *weights.shape[1:]), dtype=dtype)
    # Where a row has fewer mini-batches than slots, those left over are defined as well.
    make = torch.empty if reset is None and position is None else torch.zeros
    before = make((batch, saved_slots(length, mini_batch) if save else 0, *weights.shape), dtype=dtype)
    if q.numel():
        status = _FORWARD[dtype](
            *call.arguments, o.data_ptr(), final.data_ptr(), pointer(before if before.numel() else None)
        )
        if status == _NO_MEMORY:
            raise MemoryError("ttt_linear: no memory for the working set of a head")
        if status:
            check_position(position, mini_batch)
    return o.to(q.dtype), final, before


def backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    eta: Tensor,
    weights: Tensor,
    ln_weight: Tensor,
    ln_bias: Tensor,
    initial_state: Tensor | None,
    position: Tensor | None,
    reset: Tensor | None,
    mini_batch: int,
    epsilon: float,
    before: Tensor,
    do: Tensor | None,
    dfinal: Tensor | None,
) -> tuple[Tensor, ...]:
    """Compute the gradients of all tensors, recomputing each mini-batch; as :func:`.chunked.backward`."""
    dtype = before.dtype
    parameters = (weights, ln_weight, ln_bias, initial_state)
    call = _Call((q, k, v, eta), parameters, position, reset, mini_batch, epsilon)
    into = None if do is None else side_by_side(do.to(dtype))
    states, last = before.contiguous(), None if dfinal is None else dfinal.contiguous()
    inputs = (q, k, v, eta, weights, ln_weight, ln_bias)
    make = torch.empty if q.numel() else torch.zeros
    grads = [make(x.shape, dtype=dtype) for x in inputs]
    dinitial = make(0 if initial_state is None else initial_state.shape, dtype=dtype)
    if q.numel() and _BACKWARD[dtype](
        *call.arguments,
        states.data_ptr(),
        *rows(into),
        pointer(last),
        *(g.data_ptr() for g in grads),
        dinitial.data_ptr(),
    ):
        raise MemoryError("ttt_linear: no memory for the working set of the backward pass")
    return *(g.to(x.dtype) for x, g in zip(inputs, grads, strict=True)), dinitial
