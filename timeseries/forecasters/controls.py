"""Controls: what every forecaster must beat, from a mean to linear maps."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from ...core.errors import ConfigError
from ..data.spec import ForecastSpec
from .base import Batch, Forecaster


class Rule(Forecaster):
    """Base of the controls without weights: every quantile is the point forecast until calibration spreads them."""

    def order(self, raw: Tensor) -> Tensor:
        """Return the outputs as they are: equal quantiles are in order."""
        return raw


class WindowMeanNetwork(Rule):
    """Forecast the mean of the lookback."""

    def decode(self, past: Tensor, batch: Batch) -> Tensor:
        return _repeat(past.mean(1, keepdim=True), self.spec.horizon, self.outputs)


class LastValueNetwork(Rule):
    """Forecast the last value."""

    def decode(self, past: Tensor, batch: Batch) -> Tensor:
        return _repeat(past[:, -1:], self.spec.horizon, self.outputs)


class SeasonalNaiveNetwork(Rule):
    """Forecast the last season, repeated.

    Args:
        spec: Sizes of the data.
        quantiles: Levels to forecast.
        period: Steps in a season; the data's by default.

    Raises:
        ConfigError: The lookback holds no whole season.
    """

    def __init__(self, spec: ForecastSpec, *, quantiles: Sequence[float] = (), period: int | None = None) -> None:
        super().__init__(spec, quantiles=quantiles)
        self.period = spec.period if period is None else period
        if not 1 <= self.period <= spec.lookback:
            raise ConfigError(
                f"SeasonalNaive: period is {self.period}, expected 1 to the lookback ({spec.lookback}); "
                "lengthen --data.lookback or name a shorter --model.period"
            )

    def decode(self, past: Tensor, batch: Batch) -> Tensor:
        return _repeat(past[:, -self.period :], self.spec.horizon, self.outputs)


def _repeat(season: Tensor, horizon: int, outputs: int) -> Tensor:
    """Repeat (B, P, D) along time to (B, H, D, O)."""
    times = -(-horizon // season.shape[1])
    return season.repeat(1, times, 1)[:, :horizon].unsqueeze(-1).expand(-1, -1, -1, outputs)


class DLinearNetwork(Forecaster):
    """Two linear maps, shared by the channels: of the moving average, and of what remains.

    Args:
        spec: Sizes of the data.
        quantiles: Levels to forecast.
        kernel: Steps of the moving average, odd; the window's ends are repeated.
        norm: Normalise each window.

    Source: Zeng et al. 2023, Are transformers effective for time series forecasting?, section 4 (DLinear).
    """

    def __init__(
        self, spec: ForecastSpec, *, quantiles: Sequence[float] = (), kernel: int = 25, norm: bool = False
    ) -> None:
        super().__init__(spec, quantiles=quantiles, norm=norm)
        if kernel < 1 or kernel % 2 == 0:
            raise ConfigError(f"DLinear: kernel is {kernel}, expected an odd number of steps")
        self.kernel = kernel
        self.trend = nn.Linear(spec.lookback, spec.horizon * self.outputs)
        self.remainder = nn.Linear(spec.lookback, spec.horizon * self.outputs)

    def decode(self, past: Tensor, batch: Batch) -> Tensor:
        series = past.transpose(1, 2)
        ends = F.pad(series, (self.kernel // 2, self.kernel // 2), mode="replicate")
        trend = F.avg_pool1d(ends, self.kernel, stride=1)
        return _split(self.trend(trend) + self.remainder(series - trend), self.outputs)


class CalendarLinearNetwork(Forecaster):
    """A linear map of the window, shared by the channels, and one of the last season's calendar marks per channel.

    It tells how much of a forecaster's gain is the calendar alone.

    Args:
        spec: Sizes of the data.
        quantiles: Levels to forecast.
        norm: Normalise each window.
    """

    def __init__(self, spec: ForecastSpec, *, quantiles: Sequence[float] = (), norm: bool = False) -> None:
        super().__init__(spec, quantiles=quantiles, norm=norm)
        self.season = min(spec.period, spec.lookback)
        self.window = nn.Linear(spec.lookback, spec.horizon * self.outputs)
        self.calendar = nn.Linear(self.season * spec.marks, spec.channels * spec.horizon * self.outputs, bias=False)

    def decode(self, past: Tensor, batch: Batch) -> Tensor:
        last = batch["marks"][:, self.spec.lookback - self.season : self.spec.lookback].flatten(1)
        calendar = self.calendar(last).view(len(past), self.spec.channels, -1)
        return _split(self.window(past.transpose(1, 2)) + calendar, self.outputs)


def _split(flat: Tensor, outputs: int) -> Tensor:
    """Turn (B, D, H * O) into (B, H, D, O)."""
    return flat.unflatten(2, (-1, outputs)).transpose(1, 2)
