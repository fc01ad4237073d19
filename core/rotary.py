"""Positions in sequences that start anew, and rotation by them."""

from __future__ import annotations

import torch
from torch import Tensor

from .parameters import widen


def positions(count: Tensor, length: int, reset: Tensor | None) -> Tensor:
    """Return how many steps each step's sequence has taken before it.

    Args:
        count: Steps taken before the first, (B,), in a float dtype.
        length: Steps, L.
        reset: (B, L) bool; where True a new sequence starts; or None.

    Returns:
        (B, L), in count's dtype.
    """
    index = torch.arange(length, device=count.device, dtype=count.dtype)
    start = -count.unsqueeze(1)
    if reset is not None:
        start = torch.where(reset, index, start).cummax(1).values
    return index - start


def rotate(x: Tensor, position: Tensor, frequency: Tensor) -> Tensor:
    """Turn each pair of neighbouring features by its frequency times the position.

    Args:
        x: (..., B, L, H, D), of any float dtype; the last feature of an odd number is left as it is.
        position: (B, L).
        frequency: Radians a step, (D // 2,).

    Returns:
        The rotated features, as x.

    Source:
        Su et al., RoFormer: enhanced transformer with rotary position embedding (2021), equation 34.
    """
    pairs = frequency.shape[0]
    angle = (position.unsqueeze(-1) * frequency).unsqueeze(-2)
    cos, sin = angle.cos(), angle.sin()
    turned, rest = widen(x).split([2 * pairs, x.shape[-1] - 2 * pairs], -1)
    a, b = turned[..., ::2], turned[..., 1::2]
    turned = torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2)
    return torch.cat([turned, rest], -1).to(x.dtype)
