"""linear_scan's C++ form: threads over batch and channels, vectors over channels."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import check_finite, state_dtype
from ..cpu import INT, POINTER, SIZE, function, pointer

_SUFFIXES = {torch.float32: "f32", torch.float64: "f64", torch.complex64: "c64", torch.complex128: "c128"}
_ROWS = [POINTER, SIZE, SIZE]  # a tensor (B, L, C) and its strides over B and L
_FORWARD = {
    dtype: function(
        f"scanweave_linear_scan_forward_{suffix}",
        [*_ROWS, *_ROWS, POINTER, POINTER, POINTER, POINTER, SIZE, SIZE, SIZE, INT],
    )
    for dtype, suffix in _SUFFIXES.items()
}
_BACKWARD = {
    dtype: function(
        f"scanweave_linear_scan_backward_{suffix}",
        [*_ROWS, POINTER, POINTER, POINTER, *_ROWS, *[POINTER] * 4, SIZE, SIZE, SIZE, INT, INT],
    )
    for dtype, suffix in _SUFFIXES.items()
}


def _rows(x: Tensor | None) -> tuple[int, int, int]:
    """Return a sequence tensor's address and strides over B and L, 0 along an axis of size 1, which then broadcasts."""
    if x is None:
        return 0, 0, 0
    batch, step, _ = x.stride()
    return x.data_ptr(), batch if x.shape[0] > 1 else 0, step if x.shape[1] > 1 else 0


def _plain(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return x in the state's dtype with its channels side by side; its other strides stay."""
    if x.dtype != dtype or x.is_conj() or x.is_neg():
        x = x.to(dtype).resolve_conj().resolve_neg()
    return x if x.stride(2) == 1 or x.shape[2] == 1 else x.contiguous()


def linear_scan_cpu(
    a: Tensor, b: Tensor, initial_state: Tensor | None, reset: Tensor | None, reverse: bool
) -> tuple[Tensor, Tensor]:
    """Compute all states; arguments and results as :func:`.reference.linear_scan_reference`.

    Raises:
        ValueError: A state that was carried over is not finite, because a is not.
    """
    dtype = state_dtype(b.dtype)
    batch, length, channels = b.shape
    decay, steps = _plain(a, dtype), _plain(b, dtype)
    initial = None if initial_state is None else initial_state.contiguous().resolve_conj()
    starts = None if reset is None else reset.contiguous()
    y, final = steps.new_empty((batch, length, channels)), steps.new_empty((batch, channels))
    overflow = _FORWARD[dtype](
        *_rows(decay),
        *_rows(steps),
        pointer(initial),
        pointer(starts),
        y.data_ptr(),
        final.data_ptr(),
        batch,
        length,
        channels,
        reverse,
    )
    if overflow:
        check_finite("linear_scan", "a", a)
    return (y if b.dtype == dtype else y.to(b.dtype)), final


def linear_scan_cpu_backward(
    a: Tensor,
    y: Tensor,
    initial_state: Tensor | None,
    reset: Tensor | None,
    reverse: bool,
    dy: Tensor | None,
    dfinal: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the gradients of a, b and the initial state in one pass over reversed time; see :mod:`.adjoint`."""
    dtype = state_dtype(y.dtype)
    batch, length, channels = y.shape
    decay, states = _plain(a, dtype), (y if y.dtype == dtype else y.to(dtype)).contiguous()
    into = None if dy is None else _plain(dy, dtype)
    initial = None if initial_state is None else initial_state.contiguous().resolve_conj()
    last = None if dfinal is None else dfinal.contiguous().resolve_conj()
    starts = None if reset is None else reset.contiguous()
    summed = a.shape[1] == 1
    da = states.new_empty((batch, a.shape[1], channels))
    db, dinitial = states.new_empty((batch, length, channels)), states.new_empty((batch, channels))
    _BACKWARD[dtype](
        *_rows(decay),
        states.data_ptr(),
        pointer(initial),
        pointer(starts),
        *_rows(into),
        pointer(last),
        da.data_ptr(),
        db.data_ptr(),
        dinitial.data_ptr(),
        batch,
        length,
        channels,
        reverse,
        summed,
    )
    if da.shape != a.shape:
        da = da.sum_to_size(a.shape)
    return (da, db, dinitial) if y.dtype == dtype else (da.to(a.dtype), db.to(y.dtype), dinitial)
