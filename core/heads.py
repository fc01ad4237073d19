"""What mixers with heads share: how a width is cut into heads, and norms that keep heads apart."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import ConfigError
from .parameters import widen


def count_heads(mixer: str, width: int, head_dim: int | None, at_most: int = 64, argument: str = "head_dim") -> int:
    """Return into how many heads a width is cut.

    Args:
        mixer: Who asks, for the message.
        width: Features to cut.
        head_dim: Features of one head; None is the largest divisor of the width that is at most ``at_most``.
        at_most: Bound of the default.
        argument: What the mixer calls head_dim, for the message.

    Returns:
        The number of heads, ``width / head_dim``.

    Raises:
        ConfigError: head_dim does not divide the width.
    """
    if head_dim is None:
        head_dim = next(size for size in range(min(width, at_most), 0, -1) if width % size == 0)
    if head_dim < 1 or width % head_dim:
        raise ConfigError(f"{mixer}: {argument} is {head_dim}, expected a divisor of the width {width} that it cuts")
    return width // head_dim


def split_heads(x: Tensor, heads: int) -> Tensor:
    """Return (B, L, H * D) as (B, L, H, D); ``flatten(-2)`` goes back."""
    return x.unflatten(-1, (heads, x.shape[-1] // heads))


class HeadNorm(nn.Module):
    """Norm over each head's own features, in single precision at least.

    ``rms``: ``x / sqrt(mean(x^2) + eps) * weight``; ``layer``: the same about the mean, plus a bias.

    Args:
        heads: Heads with a weight of their own; 1 where all heads share one.
        head_dim: Features of one head.
        kind: ``rms`` or ``layer``.
        eps: What keeps the root from 0.
        affine: Whether there is a weight, and for ``layer`` a bias; flat, (heads * head_dim,).
        bias: False leaves ``layer``'s bias out.
        residual: Whether the weight is stored less 1, so that weight decay draws it to 1.
    """

    def __init__(
        self,
        heads: int,
        head_dim: int,
        kind: Literal["rms", "layer"] = "rms",
        eps: float = 1e-5,
        affine: bool = True,
        bias: bool = True,
        residual: bool = False,
    ) -> None:
        super().__init__()
        self.shape, self.kind, self.eps, self.residual = (heads, head_dim), kind, eps, residual
        width = heads * head_dim
        self.weight = nn.Parameter(torch.zeros(width) if residual else torch.ones(width)) if affine else None
        self.bias = nn.Parameter(torch.zeros(width)) if affine and bias and kind == "layer" else None

    def forward(self, x: Tensor) -> Tensor:
        """Norm x (B, L, H, D); the result has its shape and dtype."""
        wide = widen(x)
        size = wide.shape[-1:]
        y = F.rms_norm(wide, size, eps=self.eps) if self.kind == "rms" else F.layer_norm(wide, size, eps=self.eps)
        if self.weight is not None:
            weight = widen(self.weight)
            y = y * (1 + weight if self.residual else weight).view(self.shape)
        if self.bias is not None:
            y = y + widen(self.bias).view(self.shape)
        return y.to(x.dtype)
