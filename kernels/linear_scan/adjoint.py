"""The gradient of linear_scan: the same recurrence on reversed time, in differentiable PyTorch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..checks import state_dtype

Scan = Callable[[Tensor, Tensor, Tensor | None, Tensor | None, bool], tuple[Tensor, Tensor]]


def gradients(
    scan: Scan,
    a: Tensor,
    y: Tensor,
    initial_state: Tensor | None,
    reset: Tensor | None,
    reverse: bool,
    dy: Tensor | None,
    dfinal: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of a, b and the initial state.

    ``g_t = dy_t + conj(a_{t+1}) g_{t+1}``, ``db_t = g_t``, ``da_t = g_t conj(h_{t-1})``.

    Args:
        scan: What runs the recurrence: ``(a, b, initial_state, reset, reverse) -> (y, final_state)``.
        a: Decay (B or 1, L or 1, C).
        y: The states that the forward pass returned, (B, L, C).
        initial_state: State (B, C) before the first step, or None.
        reset: (B, L) bool or None.
        reverse: The direction of the forward pass.
        dy: Gradient of y, or None.
        dfinal: Gradient of the last state (B, C), or None.

    Returns:
        da in a's shape and dtype, db (B, L, C) in y's dtype, the initial state's (B, C) in the state's dtype.
    """
    dtype = state_dtype(y.dtype)
    # conj_physical: torch 2.15 drops the lazy conjugation of .conj() while AOTAutograd makes its first call.
    decay = a.to(dtype).conj_physical().expand(y.shape)
    states = y.to(dtype)
    edge = torch.zeros_like(states[:, :1]) if initial_state is None else initial_state.unsqueeze(1)
    into = torch.zeros_like(states) if dy is None else dy.to(dtype)
    # The last step taken hands its gradient on undamped, and starts no sequence.
    after_starts = None
    if reverse:
        previous, after = torch.cat([states[:, 1:], edge], 1), torch.cat([torch.ones_like(edge), decay[:, :-1]], 1)
        if reset is not None:
            after_starts = torch.cat([torch.zeros_like(reset[:, :1]), reset[:, :-1]], 1)
    else:
        previous, after = torch.cat([edge, states[:, :-1]], 1), torch.cat([decay[:, 1:], torch.ones_like(edge)], 1)
        if reset is not None:
            after_starts = torch.cat([reset[:, 1:], torch.zeros_like(reset[:, :1])], 1)
    g, _ = scan(after, into, dfinal, after_starts, not reverse)
    first = -1 if reverse else 0
    da, dinitial = g * previous.conj_physical(), decay[:, first] * g[:, first]
    if reset is not None:
        da = da.masked_fill(reset.unsqueeze(-1), 0)
        dinitial = dinitial.masked_fill(reset[:, first, None], 0)
    return da.sum_to_size(a.shape).to(a.dtype), g.to(y.dtype), dinitial
