"""Temporal-Inception: convolutions over time on the matrix of the frames' features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...core.errors import ConfigError
from .encoder import FrameEncoder


class TemporalInceptionBlock(nn.Module):
    """Convolutions over time of some widths side by side, batch norm, ReLU, and a maximum over neighbours in time.

    Args:
        dim: Features in.
        out: Features out, a multiple of the number of widths.
        widths: Frames that each convolution spans, odd.
        pool: Frames joined by the maximum; 1 for none.
    """

    def __init__(self, dim: int, out: int, widths: Sequence[int], pool: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Conv1d(dim, out // len(widths), w, padding=w // 2) for w in widths)
        self.norm = nn.BatchNorm1d(out)
        self.pool = nn.MaxPool1d(pool, ceil_mode=True) if pool > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, dim, T) to (B, out, T / pool)."""
        return self.pool(self.norm(torch.cat([branch(x) for branch in self.branches], 1)).relu())


class TemporalInceptionNetwork(nn.Module):
    """Four temporal inception blocks over the features of frames, a mean over time, and a classifier.

    Args:
        encoder: Maps frames to features.
        num_classes: K.
        width: Features of the blocks, a multiple of the number of kernels.
        kernels: Frames that the convolutions side by side span, odd; two in the paper.
        blocks: How many.
        pool: Frames that each block's maximum joins.
        dropout: Rate before the classifier.

    Raises:
        ConfigError: A kernel is even, or width is no multiple of their number.

    Source:
        Ma et al., TS-LSTM and Temporal-Inception (2019), section 3.4; the widths of the kernels are ours.
    """

    def __init__(
        self,
        encoder: FrameEncoder,
        num_classes: int,
        *,
        width: int = 512,
        kernels: Sequence[int] = (3, 7),
        blocks: int = 4,
        pool: int = 2,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if not kernels or any(kernel < 1 or kernel % 2 == 0 for kernel in kernels) or width % len(kernels):
            raise ConfigError(
                f"--model.kernels is {list(kernels)} and --model.width {width}; expected odd numbers of frames, and a "
                "width that they divide evenly"
            )
        self.encoder = encoder
        dims = [encoder.dim, *[width] * blocks]
        self.blocks = nn.Sequential(*(TemporalInceptionBlock(dim, width, kernels, pool) for dim in dims[:-1]))
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(width, num_classes))

    def forward(self, clips: Tensor) -> Tensor:
        """Return logits (B, K) of clips (B, T, C, H, W)."""
        return self.classify(self.encoder(clips))

    def classify(self, features: Tensor) -> Tensor:
        """Return logits (B, K) of features (B, T, dim)."""
        return self.head(self.blocks(features.mT).mean(-1))
