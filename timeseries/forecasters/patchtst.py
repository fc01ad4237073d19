"""PatchTST: attention over patches of each channel, to compare scans with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...core.errors import ConfigError
from ..data.spec import ForecastSpec
from .base import Batch, Forecaster


class PatchTSTNetwork(Forecaster):
    """A Transformer encoder over overlapping patches of each channel, and one linear map from all of them.

    The series' last value is repeated for one stride, so that the last patch ends with it; positions are learned.
    Channels share all weights. The encoder is :class:`torch.nn.TransformerEncoder` with the paper's batch norm left
    at layer norm. Covariates and calendar marks are not read.

    Args:
        spec: Sizes of the data.
        quantiles: Levels to forecast; empty for a point forecast.
        depth: Encoder layers.
        width: Features of a token.
        heads: Attention heads.
        patch: Steps in a token.
        stride: Steps from one token to the next.
        norm: Normalise each window.
        mlp_ratio: Hidden features of the feed-forward layers in multiples of width.
        dropout: Rate everywhere in the encoder and before the head.

    Raises:
        ConfigError: patch is not within the lookback, stride not within the patch, or heads do not divide width.

    Source:
        Nie et al., A time series is worth 64 words (2023), section 3.1.
    """

    def __init__(
        self,
        spec: ForecastSpec,
        *,
        quantiles: Sequence[float] = (),
        depth: int = 3,
        width: int = 16,
        heads: int = 4,
        patch: int = 16,
        stride: int = 8,
        norm: bool = True,
        mlp_ratio: float = 8.0,
        dropout: float = 0.3,
    ) -> None:
        super().__init__(spec, quantiles=quantiles, norm=norm)
        if not 1 <= stride <= patch <= spec.lookback:
            raise ConfigError(
                f"PatchTST: stride is {stride} and patch is {patch}, expected 1 <= stride <= patch <= lookback "
                f"({spec.lookback})"
            )
        if heads < 1 or width % heads:
            raise ConfigError(f"PatchTST: heads is {heads}, expected a divisor of width ({width})")
        self.patch, self.stride = patch, stride
        count = (spec.lookback - patch) // stride + 2
        self.embed = nn.Linear(patch, width)
        self.positions = nn.Parameter(0.02 * torch.randn(count, width))
        layer = nn.TransformerEncoderLayer(
            width, heads, int(mlp_ratio * width), dropout, activation="gelu", batch_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(count * width, spec.horizon * self.outputs)

    def decode(self, past: Tensor, batch: Batch) -> Tensor:
        size, channels = len(past), self.spec.channels
        series = F.pad(past.transpose(1, 2), (0, self.stride), mode="replicate")
        tokens = self.embed(series.unfold(-1, self.patch, self.stride)) + self.positions
        mixed = self.encoder(self.dropout(tokens).flatten(0, 1))
        out = self.head(self.dropout(mixed.flatten(1))).view(size, channels, self.spec.horizon, self.outputs)
        return out.transpose(1, 2)
