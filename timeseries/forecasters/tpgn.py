"""TPGN: a parallel gated network down the columns of a folded series, and a map along its rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ...core.errors import ConfigError
from ..data.spec import ForecastSpec
from .base import Batch, Forecaster, future_inputs, past_inputs
from .pgn import PGN, conv_uniform


class TPGNNetwork(Forecaster):
    """Forecast from the lookback folded into a grid whose rows are periods.

    Long-term branch: PGN down each column, then one linear map over the rows. Short-term branch: one linear map over
    the columns of each row, then one over the rows, repeated over the columns. A linear head maps both to the values
    of the horizon's rows, column by column. Every channel has weights of its own; calendar marks and covariates are
    joined to the value and computed once for all channels.

    A lookback that is no multiple of the period is completed at its start with the steps one period later, so that the
    grid ends with the lookback; a horizon that is none is cut from a longer one. A lookback shorter than the period
    is one row. One row has no history: its PGN keeps the bias as H.

    Args:
        spec: Sizes of the data.
        quantiles: Levels to forecast; empty for a point forecast.
        period: Columns of the grid; the data's seasonal period by default.
        hidden_size: Features d of both branches.
        norm: Normalise each window.
        future_marks: Let the head read the calendar marks of the horizon (the paper's form does not). Known
            covariates of the horizon are always read.

    Source: Jia et al. 2024, PGN: The RNN's New Successor is Effective for Long-Range Time Series Forecasting, sec. 4.
    """

    def __init__(
        self,
        spec: ForecastSpec,
        *,
        quantiles: Sequence[float] = (),
        period: int | None = None,
        hidden_size: int = 2,
        norm: bool = True,
        future_marks: bool = False,
    ) -> None:
        super().__init__(spec, quantiles=quantiles, norm=norm)
        wanted = spec.period if period is None else period
        if wanted < 1 or hidden_size < 1:
            raise ConfigError(f"TPGN: found period {wanted} and hidden_size {hidden_size}, expected both at least 1")
        self.period = min(wanted, spec.lookback)
        self.rows = -(-spec.lookback // self.period)
        self.rows_out = -(-spec.horizon // self.period)
        self.hidden_size, self.future_marks = hidden_size, future_marks
        self.shared = spec.marks + spec.known + spec.covariates
        self.ahead = spec.known + (spec.marks if future_marks else 0)
        channels, d, inputs = spec.channels, hidden_size, 1 + self.shared

        self.pgn = PGN(self.rows, d, channels=channels, shared=self.shared)
        self.long_weight = conv_uniform(channels, d, d * self.rows, fan_in=d * self.rows)
        self.long_bias = conv_uniform(channels, d, 1, fan_in=d * self.rows)
        self.row_weight = conv_uniform(channels, inputs, self.period, d, fan_in=inputs * self.period)
        self.row_bias = conv_uniform(channels, 1, d, fan_in=inputs * self.period)
        self.short_weight = conv_uniform(channels, d, d * self.rows, fan_in=d * self.rows)
        self.short_bias = conv_uniform(channels, d, 1, fan_in=d * self.rows)
        head_fan = 2 * d + self.ahead * self.rows_out
        self.head_weight = conv_uniform(channels, self.rows_out * self.outputs, head_fan, fan_in=head_fan)
        self.head_bias = conv_uniform(channels, self.rows_out * self.outputs, 1, fan_in=head_fan)

    def decode(self, past: Tensor, batch: Batch) -> Tensor:
        size, channels = len(past), self.spec.channels
        values = self._fold(past).permute(3, 1, 0, 2).contiguous()
        shared = self._fold(past_inputs(batch, self.spec.lookback)) if self.shared else past.new_zeros(size, 0, 0, 0)
        grid = (channels, self.rows, size * self.period)
        joint = shared.permute(3, 1, 0, 2).reshape(self.shared, *grid[1:])

        d = self.hidden_size
        states = self.pgn(values.view(grid), joint).reshape(channels, d * self.rows, size * self.period)
        long = torch.baddbmm(self.long_bias, self.long_weight, states)
        short = self._short_term(values, shared)

        to_long, to_short, to_ahead = self.head_weight.split((d, d, self.ahead * self.rows_out), dim=2)
        out = torch.bmm(to_long, long)
        if self.ahead:
            out = out + self._ahead(batch, to_ahead)
        row = torch.baddbmm(self.head_bias, to_short, short)
        out = out.view(channels, -1, size, self.period) + row.unsqueeze(-1)
        out = out.view(channels, self.rows_out, self.outputs, size, self.period).permute(3, 1, 4, 0, 2)
        return out.reshape(size, self.rows_out * self.period, channels, self.outputs)[:, : self.spec.horizon]

    def _fold(self, series: Tensor) -> Tensor:
        """Fold (B, L, C) to the grid (B, rows, period, C), completed at the start by the steps one period later."""
        missing = self.rows * self.period - self.spec.lookback
        if missing:
            series = torch.cat((series[:, self.period - missing : self.period], series), dim=1)
        return series.reshape(len(series), self.rows, self.period, series.shape[-1])

    def _short_term(self, values: Tensor, shared: Tensor) -> Tensor:
        """Map values (C, R, B, period) and shared inputs (B, R, period, S) over the columns, then rows: (C, d, B)."""
        channels, rows, size, period = values.shape
        d = self.hidden_size
        own, joint = self.row_weight.split((1, self.shared), dim=1)
        row = torch.baddbmm(self.row_bias, values.view(channels, rows * size, period), own.squeeze(1))
        row = row.view(channels, rows, size, d)
        if self.shared:
            weight = joint.permute(2, 1, 0, 3).reshape(period * self.shared, channels * d)
            known = shared.reshape(size * rows, period * self.shared) @ weight
            row = row + known.view(size, rows, channels, d).permute(2, 1, 0, 3)
        row = row.permute(0, 3, 1, 2).reshape(channels, d * rows, size)
        return torch.baddbmm(self.short_bias, self.short_weight, row)

    def _ahead(self, batch: Batch, weight: Tensor) -> Tensor:
        """Map what is known of the horizon, column by column: (C, rows_out * O, B * period)."""
        ahead = future_inputs(batch, self.spec.lookback, marks=self.future_marks)
        ahead = F.pad(ahead, (0, 0, 0, self.rows_out * self.period - self.spec.horizon))
        ahead = ahead.unflatten(1, (self.rows_out, self.period)).permute(3, 1, 0, 2)
        out = weight.reshape(-1, weight.shape[-1]) @ ahead.reshape(weight.shape[-1], -1)
        return out.view(*weight.shape[:2], -1)
