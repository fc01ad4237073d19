"""A backbone of space-time tokens: any mixer along orders of the clip."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import Mlp, trunc_normal_
from torch import Tensor, nn

from ...core.errors import ConfigError
from ...core.layouts import create_grid_mixer
from ..backbones.isotropic import sincos

SPATIAL_FIRST = ("raster", "raster-reversed")
"""All tokens of a frame, then the next frame; and backwards."""

TEMPORAL_FIRST = ("temporal-first", "temporal-first-reversed")
"""All frames of a place, then the next place; and backwards."""


class ClipBlock(nn.Module):
    """Pre-norm residual block of space-time tokens: a grid mixer, then a feed-forward layer.

    Args:
        dim: Features.
        mixer: Maps (B, T, H, W, C) to the same.
        mlp_ratio: Hidden features of the feed-forward layer in multiples of dim.
    """

    def __init__(self, dim: int, mixer: nn.Module, mlp_ratio: float) -> None:
        super().__init__()
        self.norm, self.mixer = nn.LayerNorm(dim), mixer
        self.norm2, self.mlp = nn.LayerNorm(dim), Mlp(dim, int(mlp_ratio * dim))

    def forward(self, x: Tensor) -> Tensor:
        """Mix tokens (B, T, H, W, C)."""
        x = x + self.mixer(self.norm(x))
        return x + self.mlp(self.norm2(x))


class ScanClipNetwork(nn.Module):
    """Tubelets as tokens, blocks of (norm, mixer, norm, MLP) along orders of the clip, and their mean.

    Args:
        num_classes: K.
        frames: Frames of a clip.
        img_size: Side of the frames, pixels.
        in_chans: Channels.
        mixer: Any registered mixer's name: of grids with three axes, or of series, which then runs along the orders.
        orders: Orders that a mixer of series runs along: :data:`SPATIAL_FIRST`, :data:`TEMPORAL_FIRST`, or others.
        mixer_options: The mixer's own arguments.
        tubelet: Frames of a token.
        patch_size: Side of a token, pixels.
        width: Features of a token.
        depth: Blocks.
        mlp_ratio: Hidden features of the feed-forward layers in multiples of width.
        dropout: Rate before the classifier.

    Raises:
        ConfigError: The clip is no whole number of tubelets, or a name is unknown.

    Source:
        Li et al., VideoMamba (2024), section 3.2, for tubelets and the two kinds of order; Arnab et al., ViViT
        (2021), section 3.2, for the tubelets.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        frames: int,
        img_size: int,
        in_chans: int = 3,
        mixer: str = "mamba",
        orders: Sequence[str] = SPATIAL_FIRST,
        mixer_options: dict[str, Any] | None = None,
        tubelet: int = 1,
        patch_size: int = 16,
        width: int = 192,
        depth: int = 12,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if frames % tubelet or img_size % patch_size:
            raise ConfigError(
                f"clips of {frames} frames of {img_size} pixels are no whole number of tubelets of {tubelet} frames of "
                f"{patch_size} pixels; change --model.tubelet, --model.patch_size, --data.frames or --data.img_size"
            )
        size = (tubelet, patch_size, patch_size)
        side = img_size // patch_size
        self.embed = nn.Conv3d(in_chans, width, size, size)
        self.register_buffer("places", sincos((side, side), width).view(1, 1, side, side, width), persistent=False)
        self.times = nn.Parameter(torch.zeros(1, frames // tubelet, 1, 1, width))
        trunc_normal_(self.times, std=0.02)
        self.blocks = nn.Sequential(
            *(
                ClipBlock(width, create_grid_mixer(mixer, width, orders=orders, **(mixer_options or {})), mlp_ratio)
                for _ in range(depth)
            )
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(width, num_classes))

    def forward(self, clips: Tensor) -> Tensor:
        """Return logits (B, K) of clips (B, T, C, H, W), of the size that was named."""
        tokens = self.embed(clips.transpose(1, 2)).movedim(1, -1) + self.places + self.times
        return self.head(self.norm(self.blocks(tokens)).mean((1, 2, 3)))
