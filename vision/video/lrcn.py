"""A recurrence over the features of frames, with a decision at each frame."""

from __future__ import annotations

import functools
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from ...core.blocks import Feedforward, Stack
from ...core.errors import ConfigError
from ...core.registry import State, create_mixer
from .encoder import FrameEncoder

Readout = Literal["average", "last", "pooled"]


class StreamState(NamedTuple):
    """What is kept of the frames seen: the mixers' states, the sum of what is read out, and how many there were."""

    mixers: tuple[State, ...]
    total: Tensor
    frames: int

    def elements(self) -> int:
        """Return the number of values kept."""
        return sum(part.numel() for state in self.mixers for part in state) + self.total.numel()


class LRCNNetwork(nn.Module):
    """Long-term recurrent convolutional network: frame encoder, recurrence over time, logits at each frame.

    h_t = mixer(encoder(x_1), ..., encoder(x_t)), logits_t = W h_t + b; a clip's logits are the mean of logits_t.

    Args:
        encoder: Maps frames to features.
        num_classes: K.
        mixer: Any registered mixer of series.
        mixer_options: The mixer's own arguments.
        width: Features of the recurrence.
        depth: Blocks.
        mlp_ratio: Hidden features of the blocks' feed-forward layers in multiples of width; 0 leaves them out.
        mlp: Their kind.
        dropout: Rate on the encoder's features and before the classifier.
        readout: A clip's logits: ``average`` of the frames', those of the ``last`` frame, or of the ``pooled``
            (averaged) recurrent features.

    Raises:
        ConfigError: The mixer or the readout is unknown.

    Source:
        Donahue et al., Long-term recurrent convolutional networks for visual recognition and description (2015),
        sections 3 and 4.1; the norm of the features is ours.
    """

    def __init__(
        self,
        encoder: FrameEncoder,
        num_classes: int,
        *,
        mixer: str = "lstm",
        mixer_options: dict[str, Any] | None = None,
        width: int = 256,
        depth: int = 1,
        mlp_ratio: float = 0.0,
        mlp: Feedforward = "mlp",
        dropout: float = 0.0,
        readout: Readout = "average",
    ) -> None:
        super().__init__()
        if readout not in ("average", "last", "pooled"):
            raise ConfigError(f"--model.readout is {readout!r}, expected average, last or pooled")
        self.encoder, self.readout = encoder, readout
        # Features' scale differs by orders of magnitude between backbones; saturated gates do not learn.
        self.inlet = nn.Sequential(nn.LayerNorm(encoder.dim), nn.Dropout(dropout), nn.Linear(encoder.dim, width))
        make = functools.partial(create_mixer, mixer, **(mixer_options or {}))
        self.temporal = Stack(width, depth, make, mlp_ratio=mlp_ratio, mlp=mlp, dropout=dropout)
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(width, num_classes)

    def frame_logits(self, clips: Tensor) -> Tensor:
        """Return the logits at each frame, (B, T, K), of clips (B, T, C, H, W)."""
        return self.head(self.drop(self._hidden(clips)))

    def _hidden(self, clips: Tensor) -> Tensor:
        return self.temporal(self.inlet(self.encoder(clips)))[0]

    def forward(self, clips: Tensor, length: Tensor | None = None) -> Tensor:
        """Classify clips.

        Args:
            clips: (B, T, C, H, W).
            length: (B,) frames of each clip, the others being filling; None for T.

        Returns:
            Logits (B, K).
        """
        hidden = self._hidden(clips)
        if length is None:
            length = torch.full(clips.shape[:1], clips.shape[1], device=clips.device)
        if self.readout == "last":
            last = hidden[torch.arange(len(hidden), device=hidden.device), length - 1]
            return self.head(self.drop(last))
        seen = torch.arange(clips.shape[1], device=clips.device) < length[:, None]
        values = self.head(self.drop(hidden)) if self.readout == "average" else hidden
        mean = (values * seen.unsqueeze(-1)).sum(1) / length.unsqueeze(-1)
        return mean if self.readout == "average" else self.head(self.drop(mean))

    def step(self, frame: Tensor, state: StreamState | None = None) -> tuple[Tensor, Tensor, StreamState]:
        """Take one frame, in memory that does not grow with the frames taken.

        Args:
            frame: (B, C, H, W).
            state: What the step before returned; None starts a video.

        Returns:
            logits: This frame's, (B, K).
            so_far: What :meth:`forward` would give for the clip up to this frame, (B, K).
            state: To go on from.
        """
        features = self.inlet(self.encoder(frame))
        hidden, mixers = self.temporal.step(features, None if state is None else state.mixers)
        logits = self.head(self.drop(hidden))
        value = {"average": logits, "last": logits, "pooled": hidden}[self.readout]
        total = value if state is None or self.readout == "last" else state.total + value
        count = 1 if state is None or self.readout == "last" else state.frames + 1
        so_far = self.head(self.drop(total / count)) if self.readout == "pooled" else total / count
        return logits, so_far, StreamState(mixers, total, count)
