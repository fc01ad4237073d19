"""Pictures of forecasts in original units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from torch import Tensor

from ..core.plots import forecast_figure
from .data.module import ForecastData
from .quantiles import point_index

MAX_FIGURES = 6


def draw_forecasts(
    data: ForecastData,
    windows: Sequence[Mapping[str, Tensor]],
    quantiles: Sequence[float],
    folder: Path,
    stem: str = "forecast",
) -> list[Path]:
    """Draw some windows' forecasts after their past, with the truth where it is known.

    Args:
        data: The data the windows come from.
        windows: Batches with ``forecast`` (B, H, D) or (B, H, D, Q), ``past``, ``series``, ``start``, and ``future``,
            ``past_mask`` and ``future_mask`` where there are any; the values scaled.
        quantiles: Q levels.
        folder: Where the pictures go.
        stem: Start of their names; a number follows.

    Returns:
        The files written: at most six, the first window of each series and channel first.
    """
    drawn: list[Path] = []
    for batch in windows:
        for i in range(len(batch["forecast"])):
            for channel in range(batch["forecast"].shape[2]):
                if len(drawn) == MAX_FIGURES:
                    return drawn
                one = {name: value[i : i + 1] for name, value in batch.items()}
                drawn.append(_draw(data, one, channel, quantiles, folder / f"{stem}_{len(drawn)}.png"))
    return drawn


def _draw(
    data: ForecastData,
    window: Mapping[str, Tensor],
    channel: int,
    quantiles: Sequence[float],
    path: Path,
) -> Path:
    info, calendar = data.frame, data.series.calendar
    series, start = int(window["series"]), int(window["start"])
    row = int(data.series.bounds[series]) + start
    past_rows = data.series.times[row : row + data.lookback]
    times = [calendar.index(past_rows), calendar.index(calendar.after(int(past_rows[-1]), data.horizon))]
    past_time, future_time = map(_wall_clock, times)

    def original(name: str) -> np.ndarray:
        values = info.original(window[name], np.array([series]))[0, :, channel]
        mask = window.get(f"{name}_mask")
        return values if mask is None else np.where(mask[0, :, channel].cpu().numpy(), values, np.nan)

    forecast, interval, label = original("forecast"), None, ""
    if quantiles:
        interval = (forecast[:, 0], forecast[:, -1]) if len(quantiles) > 1 else None
        label = f"{100 * (quantiles[-1] - quantiles[0]):g} % interval"
        forecast = forecast[:, point_index(quantiles)]
    name = info.target_names[channel]
    whose = f"{info.names[series]}, " if info.id else ""
    return forecast_figure(
        past_time,
        original("past"),
        future_time,
        forecast,
        path,
        truth=original("future") if "future" in window else None,
        interval=interval,
        interval_label=label,
        name=name,
        title=f"{whose}{name}: {data.horizon} steps ahead, from the last {data.lookback}",
    )


def _wall_clock(index: pd.Index) -> np.ndarray:
    """Return times as the clock on the wall shows them, without their zone."""
    return (index.tz_localize(None) if isinstance(index, pd.DatetimeIndex) else index).to_numpy()
