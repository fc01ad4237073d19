"""The token shift in front of RWKV's projections."""

from __future__ import annotations

import torch
from torch import Tensor


def token_shift(x: Tensor, state: Tensor, reset: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return each step's predecessor.

    Args:
        x: Input (B, L, C).
        state: The step before x, (B, C); zeros at the start of a sequence.
        reset: (B, L) bool; where True a new sequence starts: its first step has zeros before it.

    Returns:
        previous: ``x_{t-1}`` for each t, (B, L, C), in x's dtype.
        state: The last step, (B, C), in the given state's dtype.

    Source:
        Peng et al., RWKV (2023), section 3.1.
    """
    previous = torch.cat([state.to(x.dtype).unsqueeze(1), x[:, :-1]], 1)
    if reset is not None:
        previous = previous.masked_fill(reset.unsqueeze(-1), 0)
    return previous, x[:, -1].to(state.dtype)
