"""The shifts in front of RWKV's projections: by a token of a series, by a pixel of an image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
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


def pixel_shift(x: Tensor) -> Tensor:
    """Return each pixel's neighbours: a quarter of its channels from each of the four.

    In this order: from the left, from the right, from above, from below, zeros from beyond the border; channels that
    four does not divide stay the pixel's own. A clip's frames are shifted each by itself.

    Args:
        x: Input (B, ..., H, W, C), or (B, W, C), where above and below are zeros.

    Returns:
        The shifted input, x's shape and dtype.

    Source:
        Duan et al., Vision-RWKV (2024), section 3.2, "Q-Shift".
    """
    quarter = x.shape[-1] // 4
    left, right, above, below, rest = x.split([quarter] * 4 + [x.shape[-1] - 4 * quarter], -1)
    left, right = F.pad(left[..., :-1, :], (0, 0, 1, 0)), F.pad(right[..., 1:, :], (0, 0, 0, 1))
    if x.dim() > 3:
        above = F.pad(above[..., :-1, :, :], (0, 0, 0, 0, 1, 0))
        below = F.pad(below[..., 1:, :, :], (0, 0, 0, 0, 0, 1))
    else:
        above, below = torch.zeros_like(above), torch.zeros_like(below)
    return torch.cat([left, right, above, below, rest], -1)
