"""ScanNetwork: any registered mixer over steps or patches, and a direct head for the whole horizon."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...core import Stack
from ...core.errors import ConfigError
from ..data.spec import ForecastSpec
from .base import Batch, Forecaster, future_inputs, past_inputs


class ScanNetwork(Forecaster):
    """Embed patches of the window, mix them with a stack of blocks, map the last token to the horizon.

    The linear embedding of marks and covariates is computed once per window and added to each channel's. What is
    known of the horizon (covariates, calendar) meets the last token step by step: ``y_h = W z + v gelu(U f_h + V z)``.

    Args:
        spec: Sizes of the data.
        quantiles: Levels to forecast; empty for a point forecast.
        mixer: A registered mixer's name.
        depth: Blocks.
        width: Features of a token.
        patch: Steps in a token; 1 for one token per step. The first token is completed with the window's first value.
        independent: Whether each channel is a sequence of its own, with shared weights; else all join in each token.
        norm: Normalise each window.
        future_marks: Let the head read the calendar marks of the horizon.
        mlp_ratio: Hidden features of the blocks' feed-forward layers in multiples of width; 0 leaves them out.
        dropout: Rate inside the feed-forward layers.
    """

    def __init__(
        self,
        spec: ForecastSpec,
        *,
        quantiles: Sequence[float] = (),
        mixer: str = "mamba",
        depth: int = 2,
        width: int = 32,
        patch: int = 8,
        independent: bool = True,
        norm: bool = True,
        future_marks: bool = True,
        mlp_ratio: float = 2.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(spec, quantiles=quantiles, norm=norm)
        if not 1 <= patch <= spec.lookback:
            raise ConfigError(f"Scan: patch is {patch}, expected 1 to the lookback ({spec.lookback})")
        self.patch, self.independent, self.future_marks = patch, independent, future_marks
        self.sequences, self.joined = (spec.channels, 1) if independent else (1, spec.channels)
        shared = spec.marks + spec.known + spec.covariates
        ahead = spec.known + (spec.marks if future_marks else 0)
        self.embed = nn.Linear(patch * self.joined, width)
        self.embed_shared = nn.Linear(patch * shared, width, bias=False) if shared else None
        self.blocks = Stack(width, depth, mixer, mlp_ratio=mlp_ratio, dropout=dropout)
        self.head = nn.Linear(width, spec.horizon * self.joined * self.outputs)
        self.ahead = nn.Linear(ahead, width) if ahead else None
        self.meet = nn.Linear(width, width, bias=False) if ahead else None
        self.head_ahead = nn.Linear(width, self.joined * self.outputs, bias=False) if ahead else None

    def decode(self, past: Tensor, batch: Batch) -> Tensor:
        size, horizon = len(past), self.spec.horizon
        tokens = self.embed(self._patches(past.view(size, -1, self.sequences, self.joined)))
        if self.embed_shared is not None:
            tokens = tokens + self.embed_shared(self._patches(past_inputs(batch, self.spec.lookback).unsqueeze(2)))
        mixed, _ = self.blocks(tokens.flatten(0, 1))
        last = mixed[:, -1].view(size, self.sequences, -1)
        out = self.head(last).view(size, self.sequences, horizon, self.joined * self.outputs)
        if self.ahead is not None and self.meet is not None and self.head_ahead is not None:
            ahead = self.ahead(future_inputs(batch, self.spec.lookback, marks=self.future_marks)).unsqueeze(1)
            out = out + self.head_ahead(F.gelu(ahead + self.meet(last).unsqueeze(2)))
        out = out.view(size, self.sequences, horizon, self.joined, self.outputs)
        return out.permute(0, 2, 1, 3, 4).reshape(size, horizon, self.spec.channels, self.outputs)

    def _patches(self, series: Tensor) -> Tensor:
        """Cut (B, L, N, C) into tokens (B, N, ceil(L / patch), patch * C)."""
        missing = -series.shape[1] % self.patch
        if missing:
            series = torch.cat((series[:, :1].expand(-1, missing, -1, -1), series), dim=1)
        tokens = series.unflatten(1, (-1, self.patch)).permute(0, 3, 1, 2, 4)
        return tokens.flatten(3)
