"""What forecasters over patches share: tokens from patches of the window, and the way from tokens to the horizon."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...core.errors import ConfigError
from ..data.spec import ForecastSpec
from .base import Batch, Forecaster, future_inputs, past_inputs


class PatchForecaster(Forecaster):
    """Embed patches of the window, mix them, map the last token of each sequence to the horizon.

    A subclass writes :meth:`mix`. The linear embedding of marks and covariates is computed once per window and added to
    each channel's. What is known of the horizon (covariates, calendar) meets the last token step by step:
    ``y_h = W z + v gelu(U f_h + V z)``.

    Args:
        spec: Sizes of the data.
        quantiles: Levels to forecast; empty for a point forecast.
        width: Features of a token.
        patch: Steps in a token; 1 for one token per step. The first token is completed with the window's first value.
        independent: Whether each channel is a sequence of its own; else all join in each token.
        norm: Normalise each window.
        future_marks: Let the head read the calendar marks of the horizon.

    Raises:
        ConfigError: patch is not within the lookback.
    """

    def __init__(
        self,
        spec: ForecastSpec,
        *,
        quantiles: Sequence[float],
        width: int,
        patch: int,
        independent: bool,
        norm: bool,
        future_marks: bool,
    ) -> None:
        super().__init__(spec, quantiles=quantiles, norm=norm)
        if not 1 <= patch <= spec.lookback:
            name = type(self).__name__.removesuffix("Network")
            raise ConfigError(f"{name}: patch is {patch}, expected 1 to the lookback ({spec.lookback})")
        self.patch, self.future_marks = patch, future_marks
        self.sequences, self.joined = (spec.channels, 1) if independent else (1, spec.channels)
        shared = spec.marks + spec.known + spec.covariates
        ahead = spec.known + (spec.marks if future_marks else 0)
        self.embed = nn.Linear(patch * self.joined, width)
        self.embed_shared = nn.Linear(patch * shared, width, bias=False) if shared else None
        self.head = nn.Linear(width, spec.horizon * self.joined * self.outputs)
        self.ahead = nn.Linear(ahead, width) if ahead else None
        self.meet = nn.Linear(width, width, bias=False) if ahead else None
        self.head_ahead = nn.Linear(width, self.joined * self.outputs, bias=False) if ahead else None

    def mix(self, tokens: Tensor) -> Tensor:
        """Mix tokens (B, sequences, N, width) in the order of time; same shape."""
        raise NotImplementedError

    def decode(self, past: Tensor, batch: Batch) -> Tensor:
        size, horizon = len(past), self.spec.horizon
        tokens = self.embed(self._patches(past.view(size, -1, self.sequences, self.joined)))
        if self.embed_shared is not None:
            tokens = tokens + self.embed_shared(self._patches(past_inputs(batch, self.spec.lookback).unsqueeze(2)))
        last = self.mix(tokens)[:, :, -1]
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
