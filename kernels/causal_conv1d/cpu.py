"""causal_conv1d's C++ form: convolution and SiLU in one pass over time, forward and back."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import state_dtype
from ..cpu import INT, POINTER, SIZE, function, pointer
from ..selective_scan.cpu import rows, side_by_side

_SUFFIXES = {torch.float32: "f32", torch.float64: "f64"}
_ROWS = [POINTER, SIZE, SIZE]  # a sequence's address and its strides over batch and time
_PROBLEM = [*_ROWS, *[POINTER] * 4, *[SIZE] * 4, INT]
_FORWARD = {
    dtype: function(f"scanweave_causal_conv1d_forward_{suffix}", [*_PROBLEM, *[POINTER] * 2])
    for dtype, suffix in _SUFFIXES.items()
}
_BACKWARD = {
    dtype: function(f"scanweave_causal_conv1d_backward_{suffix}", [*_PROBLEM, *_ROWS, *[POINTER] * 5])
    for dtype, suffix in _SUFFIXES.items()
}


class _Problem:
    """The op's tensors in the form the C functions take; it keeps them alive while they are read."""

    def __init__(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        initial_state: Tensor | None,
        reset: Tensor | None,
        silu: bool,
    ) -> None:
        dtype = state_dtype(x.dtype)
        self.x = side_by_side(x.to(dtype))
        self.parameters = [t if t is None else t.to(dtype).contiguous() for t in (weight, bias, initial_state)]
        self.reset = None if reset is None else reset.contiguous()
        self.arguments = (
            *rows(self.x),
            *(pointer(t) for t in self.parameters),
            pointer(self.reset),
            *x.shape,
            weight.shape[1],
            silu,
        )


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, initial_state: Tensor | None, reset: Tensor | None, silu: bool
) -> tuple[Tensor, Tensor]:
    """Compute y and the last inputs; as :func:`.reference.causal_conv1d_reference`."""
    dtype, (batch, _, channels) = state_dtype(x.dtype), x.shape
    problem = _Problem(x, weight, bias, initial_state, reset, silu)
    y = torch.empty(x.shape, dtype=dtype)
    last = torch.empty((batch, weight.shape[1] - 1, channels), dtype=dtype)
    if x.numel():
        _raise_on(_FORWARD[dtype](*problem.arguments, y.data_ptr(), last.data_ptr()))
    return y.to(x.dtype), last


def backward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    reset: Tensor | None,
    silu: bool,
    dy: Tensor | None,
    dfinal: Tensor | None,
) -> tuple[Tensor, ...]:
    """Compute the gradients; as :func:`.chunked.backward`."""
    dtype = state_dtype(x.dtype)
    problem = _Problem(x, weight, bias, initial_state, reset, silu)
    into = None if dy is None else side_by_side(dy.to(dtype))
    last = None if dfinal is None else dfinal.to(dtype).contiguous()
    make = torch.empty if x.numel() else torch.zeros
    dx, dweight = make(x.shape, dtype=dtype), make(weight.shape, dtype=dtype)
    dbias, dstate = (make(0 if t is None else t.shape, dtype=dtype) for t in (bias, initial_state))
    if x.numel():
        _raise_on(
            _BACKWARD[dtype](
                *problem.arguments,
                *rows(into),
                pointer(last),
                dx.data_ptr(),
                dweight.data_ptr(),
                pointer(None if bias is None else dbias),
                pointer(None if initial_state is None else dstate),
            )
        )
    return dx.to(x.dtype), dweight.to(weight.dtype), dbias if bias is None else dbias.to(bias.dtype), dstate


def _raise_on(status: int) -> None:
    if status:
        raise MemoryError(f"causal_conv1d: no memory for the working set (status {status})")
