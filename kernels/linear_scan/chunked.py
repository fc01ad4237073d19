"""linear_scan in PyTorch ops alone: neighbouring steps merge in pairs, level by level, on any device."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..checks import check_finite, has_values, state_dtype
from .adjoint import gradients

Product = Callable[[Tensor, Tensor], Tensor]


def linear_scan_chunked(
    a: Tensor, b: Tensor, initial_state: Tensor | None, reset: Tensor | None, reverse: bool
) -> tuple[Tensor, Tensor]:
    """Compute all states in O(L) work and 2 log2(L) rounds of PyTorch ops.

    Two steps are one: ``(a1, b1)`` then ``(a2, b2)`` is ``(a2 a1, a2 b1 + b2)``. No quotient and no logarithm of a
    appears, so that zero, negative and complex decays are as good as any.

    Args:
        a: Decay (B or 1, L or 1, C).
        b: Input (B, L, C), same dtype.
        initial_state: State (B, C) before the first step, in the state's dtype; None is zero.
        reset: (B, L) bool or None.
        reverse: Run from the last step to the first.

    Returns:
        All states (B, L, C) in b's dtype, and the last one (B, C) in the state's dtype.

    Raises:
        ValueError: On the CPU: a state that was carried over is not finite, because a is not.
    """
    dtype = state_dtype(b.dtype)
    decay, states = a.to(dtype).expand(-1, b.shape[1], -1), b.to(dtype)
    starts = None if reset is None else reset.unsqueeze(-1)
    if reverse:
        decay, states = decay.flip(1), states.flip(1)
        starts = None if starts is None else starts.flip(1)
    if initial_state is not None:
        carried = _carry(decay[:, :1], initial_state.unsqueeze(1), None if starts is None else starts[:, :1])
        states = torch.cat([states[:, :1] + carried, states[:, 1:]], 1)
    states = scan(decay, states, starts)
    # A state of its own: a view would keep all states alive for as long as the caller keeps the last one.
    final = states[:, -1].clone()
    # A decay that is not finite spoils all states up to the next reset. On a GPU the look would wait for the device.
    if has_values(b) and not torch.isfinite(final if reset is None else states).all():
        check_finite("linear_scan", "a", a)
    return (states.flip(1) if reverse else states).to(b.dtype).contiguous(), final


def _carry(a: Tensor, state: Tensor, starts: Tensor | None, product: Product = torch.mul) -> Tensor:
    """Return what a state leaves to the next step: nothing (rather than 0 * NaN) where a sequence starts."""
    carried = product(a, state)
    return carried if starts is None else carried.masked_fill(starts, 0)


def scan(a: Tensor, b: Tensor, starts: Tensor | None, product: Product = torch.mul) -> Tensor:
    """Return all states (B, L, C) from zero; ``starts`` (B, L, 1) is where no earlier state is carried over.

    Decays may be matrices, (B, L, S, S, C) to states (B, L, S, 1, C), where ``product`` multiplies them.
    """
    length = b.shape[1]
    if length == 1:
        return b.clone()
    even, odd = slice(0, length // 2 * 2, 2), slice(1, None, 2)
    odd_starts = None if starts is None else starts[:, odd]
    merged_b = _carry(a[:, odd], b[:, even], odd_starts, product).add_(b[:, odd])
    merged_a = _carry(a[:, odd], a[:, even], odd_starts, product)
    merged_starts = None if starts is None else starts[:, even] | starts[:, odd]
    at_odd = scan(merged_a, merged_b, merged_starts, product)
    y = torch.empty_like(b, memory_format=torch.contiguous_format)
    y[:, odd] = at_odd
    y[:, 0] = b[:, 0]
    later = slice(2, None, 2)
    later_starts = None if starts is None else starts[:, later]
    y[:, later] = _carry(a[:, later], at_odd[:, : (length - 1) // 2], later_starts, product).add_(b[:, later])
    return y


def linear_scan_chunked_backward(
    a: Tensor,
    y: Tensor,
    initial_state: Tensor | None,
    reset: Tensor | None,
    reverse: bool,
    dy: Tensor | None,
    dfinal: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the gradients of a, b and the initial state; see :func:`.adjoint.gradients`."""
    return gradients(linear_scan_chunked, a, y, initial_state, reset, reverse, dy, dfinal)
