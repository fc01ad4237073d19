"""TS-LSTM: pooled temporal segments, then an LSTM over the segments."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...core.errors import ConfigError
from .encoder import FrameEncoder


class TSLSTMNetwork(nn.Module):
    """Temporal segment LSTM over the features of frames.

    s_i = max of batchnorm(features) over segment i; h = LSTM(s_1, ..., s_S); logits = W batchnorm(h_S) + b

    Args:
        encoder: Maps frames to features.
        num_classes: K.
        segments: S, equal parts of the clip.
        hidden: Features of the LSTM.
        dropout: Rate before the classifier.

    Raises:
        ConfigError: There is no segment.

    Source:
        Ma et al., TS-LSTM and Temporal-Inception (2019), section 3.3.
    """

    def __init__(
        self, encoder: FrameEncoder, num_classes: int, *, segments: int = 3, hidden: int = 512, dropout: float = 0.0
    ) -> None:
        super().__init__()
        if segments < 1:
            raise ConfigError(f"--model.segments is {segments}; expected at least 1")
        self.encoder, self.segments = encoder, segments
        self.norm = nn.BatchNorm1d(encoder.dim)
        self.lstm = nn.LSTM(encoder.dim, hidden, batch_first=True)
        self.hidden_norm = nn.BatchNorm1d(hidden)
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(hidden, num_classes))

    def forward(self, clips: Tensor) -> Tensor:
        """Return logits (B, K) of clips (B, T, C, H, W), T at least the number of segments.

        Raises:
            ConfigError: There are fewer frames than segments.
        """
        return self.classify(self.encoder(clips))

    def classify(self, features: Tensor) -> Tensor:
        """Return logits (B, K) of features (B, T, dim)."""
        if features.shape[1] < self.segments:
            raise ConfigError(
                f"--model.segments is {self.segments}, and a clip has {features.shape[1]} frames; raise --data.frames"
            )
        normed = self.norm(features.mT).mT
        pooled = torch.stack([part.amax(1) for part in normed.tensor_split(self.segments, 1)], 1)
        return self.head(self.hidden_norm(self.lstm(pooled)[0][:, -1]))
