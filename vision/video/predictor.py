"""Prediction of frames: each to a map of features, mixers of clips over the maps, the next frame from each."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...core.errors import ConfigError
from ...core.layouts import create_clip_mixer
from ...core.registry import State

States = tuple[State, ...]
_STRIDE = 4


class FramePredictor(nn.Module):
    """Predict a clip's next frames: all at once where the frames before are known, else one after the other.

    ``z_t = encoder(x_t)``; per layer ``z = z + mixer(norm(z))``; ``p(x_{t+1}) = sigmoid(decoder(z_t))``. The encoder
    halves a frame's side twice by convolutions, the decoder doubles it twice.

    Args:
        mixer: Any registered mixer of clips: ``convs5`` or ``convlstm``.
        mixer_options: The mixer's own arguments.
        channels: Channels of a frame.
        width: Features of a map.
        depth: Layers.

    Raises:
        ConfigError: A size is not positive, or the mixer does not take an option.

    Source:
        Smith et al., Convolutional state space models for long-range spatiotemporal modeling (2023), sections 4 and
        5.1; the encoder and the decoder are plainer than theirs.
    """

    def __init__(
        self,
        mixer: str = "convs5",
        mixer_options: dict[str, Any] | None = None,
        channels: int = 1,
        width: int = 64,
        depth: int = 4,
    ) -> None:
        super().__init__()
        if width < 2 or width % 2 or depth < 1:
            raise ConfigError(f"predictor: width is {width} and depth {depth}, expected an even width and a depth")
        half = width // 2
        self.encoder = nn.Sequential(
            nn.Conv2d(channels, half, 3, 2, 1), nn.GELU(), nn.Conv2d(half, width, 3, 2, 1), nn.GELU(),
            nn.Conv2d(width, width, 3, 1, 1),
        )  # fmt: skip
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(depth))
        self.mixers = nn.ModuleList(create_clip_mixer(mixer, width, **(mixer_options or {})) for _ in range(depth))
        self.decoder = nn.Sequential(
            nn.Conv2d(width, width, 3, 1, 1), nn.GELU(), nn.ConvTranspose2d(width, half, 4, 2, 1), nn.GELU(),
            nn.ConvTranspose2d(half, channels, 4, 2, 1),
        )  # fmt: skip

    def forward(self, video: Tensor, states: States | None = None) -> tuple[Tensor, States]:
        """Predict the frame after each frame.

        Args:
            video: (B, T, C, H, W) in [0, 1]; H and W multiples of 4.
            states: What an earlier call returned, to go on from there.

        Returns:
            Logits of the next frames (B, T, C, H, W), and the mixers' states after the last.

        Raises:
            ConfigError: H or W is no multiple of 4.
        """
        batch, frames, _, height, width = video.shape
        if height % _STRIDE or width % _STRIDE:
            raise ConfigError(f"predictor: frames have {height} x {width} pixels, expected multiples of {_STRIDE}")
        z = self.encoder(video.flatten(0, 1)).unflatten(0, (batch, frames)).movedim(2, -1)
        kept = []
        for i, (norm, mixer) in enumerate(zip(self.norms, self.mixers, strict=True)):
            y, state = mixer(norm(z), None if states is None else states[i])
            z = z + y
            kept.append(state)
        logits: Tensor = self.decoder(z.movedim(-1, 2).flatten(0, 1))
        return logits.unflatten(0, (batch, frames)), tuple(kept)

    @torch.no_grad()
    def generate(self, video: Tensor, frames: int) -> Tensor:
        """Go on with a clip, each predicted frame being the next one's input; memory does not grow with the frames.

        Args:
            video: (B, T, C, H, W) in [0, 1], the frames that are known.
            frames: How many to predict.

        Returns:
            (B, frames, C, H, W) in [0, 1].

        Raises:
            ValueError: No frame is to be predicted.
        """
        if frames < 1:
            raise ValueError(f"frames is {frames}, expected at least 1")
        logits, states = self(video)
        made = [logits[:, -1:].sigmoid()]
        while len(made) < frames:
            logits, states = self(made[-1], states)
            made.append(logits.sigmoid())
        return torch.cat(made, 1)
