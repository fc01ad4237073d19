"""What the C++ forms of the recurrences with a matrix state have in common: one call, packed for one C struct."""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple

import torch
from torch import Tensor

from ..checks import check_log_decay, state_dtype
from . import POINTER, function, pointer

_SUFFIXES = {torch.float32: "f32", torch.float64: "f64"}
_NO_MEMORY = 2
# As the structs Problem, Sequence and Gradients of matrix_state.h and matrix_state_backward.h have them.
_PROBLEM, _SEQUENCE, _GRADIENTS = Struct("=46qd"), Struct("=5q"), Struct("=9q")
_ABSENT = (0, 0, 0, 0, 0)
_NO_DECAY, _CONSTANT, _PER_STEP, _PER_ROW = range(4)
_KINDS = {1: _CONSTANT, 3: _PER_STEP, 4: _PER_ROW}


class Arguments(NamedTuple):
    """The tensors of one call; an op leaves out what it does not have."""

    q: Tensor
    k: Tensor
    v: Tensor
    log_decay: Tensor | None
    initial_state: Tensor | None
    reset: Tensor | None
    scale: float
    a: Tensor | None = None
    b: Tensor | None = None
    beta: Tensor | None = None
    bonus: Tensor | None = None


def _plain(x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Return x in a dtype, and as it stands in memory."""
    if x is None:
        return None
    if x.dtype != dtype:
        x = x.to(dtype)
    return x.resolve_neg() if x.is_neg() else x


def _adjacent(x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Return x in a dtype with its last axis side by side; its other strides stay."""
    x = _plain(x, dtype)
    return x if x is None or x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _packed(x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    x = _plain(x, dtype)
    return x if x is None else x.contiguous()


def _sequence(x: Tensor | None, axes: int) -> tuple[int, ...]:
    """Return the address of (B, L, [n,] H, ...) and its strides over batch, step, item and head.

    Args:
        x: The tensor, or None.
        axes: How many axes come before what lies side by side.
    """
    if x is None:
        return _ABSENT
    stride = x.stride()
    if axes == 1:
        return x.data_ptr(), 0, 0, 0, stride[0]
    return (x.data_ptr(), stride[0], stride[1], 0, stride[2]) if axes == 3 else (x.data_ptr(), *stride[:4])


class _Problem:
    """The arguments in the form the C functions take; it keeps them alive while they are read."""

    def __init__(self, x: Arguments, dtype: torch.dtype, chunk: int) -> None:
        batch, length, heads, keys = x.q.shape
        many, key_axes = (x.k.shape[2], 4) if x.k.dim() == 5 else (1, 3)
        decay = x.log_decay
        kind = _NO_DECAY if decay is None else _KINDS[decay.dim()]
        rows = [_adjacent(t, dtype) for t in (x.q, x.k, x.v, x.a, x.b)]
        beta = _plain(x.beta, dtype)
        decay = _adjacent(decay, dtype) if kind == _PER_ROW else _plain(decay, dtype)
        bonus, initial = _packed(x.bonus, dtype), _packed(x.initial_state, dtype)
        reset = None if x.reset is None else x.reset.contiguous()
        q, k, v, a, b = rows
        self.keep = (rows, beta, decay, bonus, initial, reset)
        self.packed = _PROBLEM.pack(
            *_sequence(q, 3),
            *_sequence(k, key_axes),
            *_sequence(v, key_axes),
            *_sequence(a, 3),
            *_sequence(b, 3),
            *_sequence(beta, 4),
            *_sequence(decay, 1 if kind == _CONSTANT else 3),
            pointer(bonus),
            pointer(initial),
            pointer(reset),
            batch,
            length,
            heads,
            many,
            keys,
            x.v.shape[-1],
            chunk,
            kind,
            x.scale,
        )


class MatrixState:
    """The C functions of one op.

    Args:
        op: The op's name.
        chunk: Steps between two saved states.
    """

    def __init__(self, op: str, chunk: int) -> None:
        self.op, self.chunk = op, chunk
        self._forward = {
            dtype: function(f"scanweave_{op}_forward_{suffix}", [POINTER] * 4) for dtype, suffix in _SUFFIXES.items()
        }
        self._backward = {
            dtype: function(f"scanweave_{op}_backward_{suffix}", [POINTER] * 5) for dtype, suffix in _SUFFIXES.items()
        }

    def forward(self, x: Arguments, save: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Return o, the final state and, with ``save``, the state before each chunk.

        Raises:
            ValueError: An entry of log_decay is NaN or above 0.
        """
        dtype = state_dtype(x.q.dtype)
        batch, length, heads, keys = x.q.shape
        width = x.v.shape[-1]
        o = torch.empty((batch, length, heads, width), dtype=dtype)
        final = torch.empty((batch, heads, keys, width), dtype=dtype)
        before = torch.empty((batch, -(-length // self.chunk) if save else 0, heads, keys, width), dtype=dtype)
        if o.numel():
            problem = _Problem(x, dtype, self.chunk)
            status = self._forward[dtype](
                problem.packed, o.data_ptr(), final.data_ptr(), pointer(before if save else None)
            )
            if status == _NO_MEMORY:
                raise MemoryError(f"{self.op}: no memory for the working set of a head")
            if status and x.log_decay is not None:
                check_log_decay(self.op, x.log_decay)
        return o if x.q.dtype == dtype else o.to(x.q.dtype), final, before

    def backward(
        self, x: Arguments, before: Tensor, do: Tensor | None, dfinal: Tensor | None, names: tuple[str, ...]
    ) -> tuple[Tensor, ...]:
        """Return the gradients of the named arguments, empty where one is None, and of the initial state."""
        dtype = before.dtype
        inputs = {name: getattr(x, name) for name in names}
        make = torch.empty if x.v.numel() else torch.zeros
        grads = {name: make(0 if t is None else t.shape, dtype=dtype) for name, t in inputs.items()}
        dinitial = make((before.shape[0], *before.shape[2:]), dtype=dtype)
        if x.v.numel():
            problem, into, states = _Problem(x, dtype, self.chunk), _adjacent(do, dtype), before.contiguous()
            last = _packed(dfinal, dtype)
            addresses = [
                grads[name].data_ptr() if inputs.get(name) is not None else 0
                for name in ("q", "k", "v", "a", "b", "beta", "log_decay", "bonus")
            ]
            status = self._backward[dtype](
                problem.packed,
                _SEQUENCE.pack(*_sequence(into, 3)),
                states.data_ptr(),
                pointer(last),
                _GRADIENTS.pack(*addresses, dinitial.data_ptr()),
            )
            if status:
                raise MemoryError(f"{self.op}: no memory for the working set of the backward pass")
        return *(
            g if t is None else g.to(t.dtype) for t, g in zip(inputs.values(), grads.values(), strict=True)
        ), dinitial
