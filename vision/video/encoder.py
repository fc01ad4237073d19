"""Features of single frames, by any image backbone of timm's registry."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from ...core.errors import ConfigError
from ..classification.weights import create_backbone


class FrameEncoder(nn.Module):
    """The same image backbone on each frame.

    Args:
        backbone: A name of ``timm.list_models()``, this package's included.
        img_size: Side of the frames, pixels.
        in_chans: Channels of the frames.
        options: The backbone's own arguments.
        grid: 1 takes the backbone's own pooled features; g > 1 averages its last map over g x g cells and lays them
            side by side, so that places are kept (as the fully connected layers of early networks kept them).

    Attributes:
        dim: Features of a frame.

    Raises:
        ConfigError: The backbone is unknown or cannot be built so.
    """

    def __init__(
        self,
        backbone: str,
        *,
        img_size: int,
        in_chans: int = 3,
        options: dict[str, Any] | None = None,
        grid: int = 1,
    ) -> None:
        super().__init__()
        if grid < 1:
            raise ConfigError(f"--model.grid is {grid}; expected at least 1")
        self.grid = grid
        self.backbone = create_backbone(
            backbone, img_size=img_size, options=options or {}, num_classes=0, in_chans=in_chans
        )
        if grid > 1:
            self.pool = nn.AdaptiveAvgPool2d(grid)
        like = next(self.backbone.parameters())
        with torch.no_grad():
            was_training = self.backbone.training
            self.backbone.eval()
            self.dim = self._features(torch.zeros(1, in_chans, img_size, img_size, dtype=like.dtype)).shape[-1]
            self.backbone.train(was_training)

    def _features(self, frames: Tensor) -> Tensor:
        model = cast(Any, self.backbone)
        if self.grid == 1:
            return model(frames)
        (last,) = model.forward_intermediates(frames, indices=1, intermediates_only=True)
        return self.pool(last).flatten(1)

    def forward(self, clips: Tensor) -> Tensor:
        """Return features (B, T, dim) of clips (B, T, C, H, W); of single frames (B, C, H, W) they are (B, dim)."""
        if clips.dim() == 4:
            return self._features(clips)
        return self._features(clips.flatten(0, 1)).unflatten(0, clips.shape[:2])
