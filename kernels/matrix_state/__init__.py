"""What the recurrences with a matrix state per head have in common: their arguments' checks and their saved states."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ..checks import FLOATS, check_device, check_dtype, check_length, check_shape, state_dtype

#: One argument: its name, the tensor or None, the shape and layout it must have, and the dtypes it may have.
Argument = tuple[str, Tensor | None, tuple[int, ...], str, tuple[torch.dtype, ...]]


def gate_dtypes(q: Tensor) -> tuple[torch.dtype, ...]:
    """Return the dtypes a gate may have beside a query: the query's own, or float32."""
    return (torch.float32,) if q.dtype == torch.float32 else (q.dtype, torch.float32)


def check_query(op: str, q: Tensor) -> None:
    """Raise unless q is a floating-point (B, L, H, K) with at least one step and K >= 1."""
    check_dtype(op, "q", q, FLOATS)
    if q.dim() != 4 or q.shape[3] == 0:
        raise ValueError(f"{op}: q has shape {tuple(q.shape)}, expected (B, L, H, K) with K >= 1")
    check_length(op, "q", q)


def value_width(op: str, v: Tensor, q: Tensor, axes: int = 4) -> int:
    """Return V, the width of v's last axis; raise unless v has the query's dtype and so many axes."""
    check_dtype(op, "v", v, (q.dtype,))
    if v.dim() != axes:
        layout = "(B, L, H, V)" if axes == 4 else "(B, L, n, H, V)"
        raise ValueError(f"{op}: v has shape {tuple(v.shape)}, expected {layout}")
    return v.shape[-1]


def check_arguments(
    op: str, q: Tensor, arguments: Iterable[Argument], width: int, initial_state: Tensor | None, reset: Tensor | None
) -> None:
    """Raise unless every argument, the initial state (B, H, K, V) and reset (B, L) fit the query.

    Args:
        op: The op's name.
        q: A query that :func:`check_query` has seen.
        arguments: The op's other tensors; None is skipped.
        width: V.
        initial_state: The state before the first step, or None.
        reset: The mask of sequence starts, or None.
    """
    batch, length, heads, keys = q.shape
    everything: list[Argument] = [
        *arguments,
        (
            "initial_state",
            initial_state,
            (batch, heads, keys, width),
            "(B, H, K, V)",
            (state_dtype(q.dtype), q.dtype),
        ),
        ("reset", reset, (batch, length), "(B, L)", (torch.bool,)),
    ]
    for name, tensor, shape, layout, dtypes in everything:
        if tensor is not None:
            check_dtype(op, name, tensor, dtypes)
            check_shape(op, name, tensor, shape, layout)
    check_device(op, q, {name: tensor for name, tensor, *_ in everything})


def as_state(initial_state: Tensor | None, q: Tensor) -> Tensor | None:
    """Return the initial state in the state's dtype."""
    if initial_state is None or initial_state.dtype == state_dtype(q.dtype):
        return initial_state
    return initial_state.to(state_dtype(q.dtype))


def first_state(q: Tensor, width: int, initial_state: Tensor | None) -> Tensor:
    """Return the state before the first step, (B, H, K, V) in the state's dtype."""
    if initial_state is not None:
        return initial_state
    batch, _, heads, keys = q.shape
    return q.new_zeros((batch, heads, keys, width), dtype=state_dtype(q.dtype))


def fake_outputs(q: Tensor, width: int, steps: int, save: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return empty tensors shaped as o, the final state and the states before each chunk of ``steps`` steps."""
    batch, length, heads, keys = q.shape
    dtype, chunks = state_dtype(q.dtype), (length + steps - 1) // steps if save else 0
    return (
        q.new_empty((batch, length, heads, width)),
        q.new_empty((batch, heads, keys, width), dtype=dtype),
        q.new_empty((batch, chunks, heads, keys, width), dtype=dtype),
    )


def fake_gradients(arguments: Iterable[Tensor | None], before: Tensor) -> tuple[Tensor, ...]:
    """Return empty tensors shaped as the gradients of the arguments and of the initial state."""
    like = [before.new_empty(0) if x is None else x.new_empty(x.shape) for x in arguments]
    return *like, before.new_empty((before.shape[0], *before.shape[2:]))
