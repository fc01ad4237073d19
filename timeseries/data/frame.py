"""Turn scaled forecasts into a table in original units, with times, series names and quantile columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from torch import Tensor

from .clock import Calendar
from .scaling import StandardScaler


@dataclass(frozen=True)
class FrameInfo:
    """What a table of forecasts is made from, beside the forecasts.

    Args:
        time: Name of the time column.
        id: Name of the series column; None where there is one series without a name.
        names: (S,) names of the series.
        target_names: (D,) names of the targets.
        calendar: The clock.
        scaler: Scaler of the targets.
        groups: (S,) the scaler's group of each series; None for one group.
    """

    time: str
    id: str | None
    names: tuple[str, ...]
    target_names: tuple[str, ...]
    calendar: Calendar
    scaler: StandardScaler
    groups: np.ndarray | None

    def original(self, values: Tensor | np.ndarray, series: np.ndarray) -> np.ndarray:
        """Return scaled targets in original units.

        Args:
            values: (B, H, D) or (B, H, D, Q), scaled.
            series: (B,) series of each.

        Returns:
            float64 of the same shape.
        """
        array = np.asarray(values.detach().cpu().double() if isinstance(values, Tensor) else values, dtype=np.float64)
        # The scaler wants channels last; quantiles stand behind them here.
        last = np.moveaxis(array, 2, -1)
        rows = last.reshape(-1, last.shape[-1])
        groups = None if self.groups is None else np.repeat(self.groups[series], len(rows) // max(len(array), 1))
        return np.moveaxis(self.scaler.inverse(rows, groups).reshape(last.shape), -1, 2)


def forecast_frame(
    predictions: Tensor | np.ndarray,
    info: FrameInfo,
    series: Sequence[int] | np.ndarray,
    last_times: Sequence[int] | np.ndarray,
    quantiles: Sequence[float] = (),
) -> pd.DataFrame:
    """Return forecasts as a table, one row per series and step.

    Args:
        predictions: (B, H, D), or (B, H, D, Q) with quantiles; scaled.
        info: Names, clock and scaler.
        series: (B,) series of each forecast.
        last_times: (B,) integer time of the last row that each forecast was made from.
        quantiles: (Q,) levels of the last axis.

    Returns:
        The time column (in the time zone of the data), the series column where there is one, and a column for each
        target; with quantiles one column each, as ``load_q0.1``, and the median as ``load``.

    Raises:
        ValueError: The predictions' shape does not fit the names or the quantiles.
    """
    values = info.original(predictions, np.asarray(series))
    wanted = (len(info.target_names), len(quantiles)) if len(quantiles) else (len(info.target_names),)
    if values.shape[2:] != wanted or len(values) != len(series):
        raise ValueError(
            f"predictions have shape {values.shape}, expected ({len(series)}, horizon, {', '.join(map(str, wanted))})"
        )
    horizon = values.shape[1]
    times = np.concatenate([info.calendar.after(int(last), horizon) for last in last_times])
    columns: dict[str, object] = (
        {} if info.id is None else {info.id: np.repeat([info.names[s] for s in series], horizon)}
    )
    columns[info.time] = info.calendar.index(times)
    for d, name in enumerate(info.target_names):
        if not len(quantiles):
            columns[name] = values[:, :, d].ravel()
        for q, level in enumerate(quantiles):
            if level == 0.5:
                columns[name] = values[:, :, d, q].ravel()
            columns[f"{name}_q{level:g}"] = values[:, :, d, q].ravel()
    return pd.DataFrame(columns)
