"""Divide series in time order into training, validation and test rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from ...core.errors import ConfigError, DataError
from .options import logger
from .series import SeriesSet

SplitBy = Literal["ratio", "dates", "ett"]
PARTS = ("train", "val", "test")
# The usual protocol of the ETT data sets: 12, 4 and 4 months of 30 days.
_ETT_DAYS = (360, 120, 120)
_ETT_ROWS_PER_DAY = {"h": 24, "15min": 96}


@dataclass(frozen=True)
class Split:
    """The three parts of every series.

    Args:
        edges: (S, 4) row numbers within each series: training rows are 0:1, validation 1:2, test 2:3 of these edges.
        lookback: Rows that the first validation and test windows reach back into the part before.
        horizon: Rows that a window forecasts.
    """

    edges: np.ndarray
    lookback: int
    horizon: int

    @property
    def train_rows(self) -> np.ndarray:
        """Number (S,) of training rows of each series: all that a scaler may see."""
        return self.edges[:, 1] - self.edges[:, 0]

    def windows(self, part: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the first row (S,) and the number (S,) of a part's windows in each series."""
        i = PARTS.index(part)
        low, high = self.edges[:, i], self.edges[:, i + 1]
        first = low if part == "train" else np.maximum(low - self.lookback, 0)
        count = np.maximum(high - first - self.lookback - self.horizon + 1, 0)
        return first, np.where(high > low, count, 0)


def split_series(
    series: SeriesSet,
    lookback: int,
    horizon: int,
    *,
    by: SplitBy = "ratio",
    ratios: Sequence[float] = (0.6, 0.2, 0.2),
    val_from: str | None = None,
    test_from: str | None = None,
) -> Split:
    """Divide every series in time order.

    Args:
        series: The series; only their numbers of rows and their times are looked at.
        lookback: Rows of the past in a window.
        horizon: Rows that a window forecasts.
        by: ``ratio`` of each series' rows; ``dates`` given; ``ett``: 12, 4 and 4 months of 30 days, the rest unused.
        ratios: Shares of training, validation and test; rounding goes to validation. A part may be 0.
        val_from: First time of validation (``dates``).
        test_from: First time of test (``dates``).

    Returns:
        The split; series too short for a window of a part are logged and give none.

    Raises:
        DataError: No series is long enough for a window of a part that is asked for.
        ConfigError: The ratios or the dates make no split.
    """
    lengths = series.lengths
    if by == "ratio":
        _check_ratios(ratios)
        edges, asked = _by_ratio(lengths, ratios), np.asarray(ratios) > 0
    elif by == "ett":
        edges, asked = _by_months(series), np.ones(3, dtype=bool)
    else:
        edges, asked = _by_dates(series, val_from, test_from), np.ones(3, dtype=bool)
    split = Split(edges, lookback, horizon)
    for part, wanted in zip(PARTS, asked, strict=True):
        if wanted:
            _check_part(series, split, part, ratios if by == "ratio" else None)
    return split


def _check_ratios(ratios: Sequence[float]) -> None:
    if len(ratios) != 3 or min(ratios) < 0 or abs(sum(ratios) - 1) > 1e-6:
        raise ConfigError(f"ratios are {list(ratios)}, expected three shares (train, val, test) that sum to 1")


def _by_ratio(lengths: np.ndarray, ratios: Sequence[float]) -> np.ndarray:
    train, test = (lengths * ratios[0]).astype(np.int64), (lengths * ratios[2]).astype(np.int64)
    if ratios[1] == 0:
        train = lengths - test
    return np.stack([np.zeros_like(lengths), train, lengths - test, lengths], axis=1)


def _by_months(series: SeriesSet) -> np.ndarray:
    per_day = _ETT_ROWS_PER_DAY.get(series.calendar.freq)
    if per_day is None:
        raise DataError(
            f"{series.source}: split 'ett' is for steps of h or 15min, found {series.calendar.freq!r}; use ratio"
        )
    edges = np.cumsum([0, *(days * per_day for days in _ETT_DAYS)])
    if series.lengths.min() < edges[-1]:
        raise DataError(
            f"{series.source}: split 'ett' needs {edges[-1]} rows (20 months of 30 days), "
            f"found {series.lengths.min()}; use ratio"
        )
    return np.tile(edges, (len(series), 1))


def _by_dates(series: SeriesSet, val_from: str | None, test_from: str | None) -> np.ndarray:
    if val_from is None or test_from is None:
        raise ConfigError("split 'dates' needs both --data.val_from and --data.test_from")
    starts = np.array([_integer_time(series, val_from, "val_from"), _integer_time(series, test_from, "test_from")])
    if starts[0] >= starts[1]:
        raise ConfigError(f"val_from ({val_from}) must lie before test_from ({test_from})")
    edges = np.zeros((len(series), 4), dtype=np.int64)
    for s, (low, length) in enumerate(zip(series.bounds[:-1], series.lengths, strict=True)):
        edges[s, 1:3] = np.searchsorted(series.times[low : low + length], starts)
        edges[s, 3] = length
    return edges


def _integer_time(series: SeriesSet, text: str, option: str) -> int:
    calendar = series.calendar
    try:
        if not calendar.freq:
            return int(text)
        time = pd.Timestamp(text)
        if calendar.timezone is not None:
            time = time.tz_localize(calendar.timezone) if time.tz is None else time.tz_convert(calendar.timezone)
        return int(calendar.integers(pd.DatetimeIndex([time]))[0])
    except (ValueError, TypeError) as error:
        raise ConfigError(f"--data.{option}: found {text!r}, expected a time as in the data ({error})") from None


def _check_part(series: SeriesSet, split: Split, part: str, ratios: Sequence[float] | None) -> None:
    count = split.windows(part)[1]
    short = np.flatnonzero(count == 0)
    if not len(short):
        return
    need = split.lookback + split.horizon
    if len(short) == len(series):
        longest = int(series.lengths.argmax())
        advice = (
            "move the dates" if ratios is None else f"{shortest(split.lookback, split.horizon, ratios)} rows would do"
        )
        raise DataError(
            f"{series.source}: {series.label(longest)} has {series.lengths[longest]} rows, too few for one {part} "
            f"window of lookback {split.lookback} + horizon {split.horizon} = {need} rows; {advice}, or a "
            "shorter lookback or horizon"
        )
    listed = ", ".join(f"{series.names[s]} ({series.lengths[s]} rows)" for s in short[:3])
    logger.warning(
        "%s: %d of %d series are too short for a %s window of %d + %d rows and are left out of it: %s%s",
        series.source, len(short), len(series), part, split.lookback, split.horizon, listed,
        ", ..." if len(short) > 3 else "",
    )  # fmt: skip


def shortest(lookback: int, horizon: int, ratios: Sequence[float]) -> int:
    """Return the least number of rows that gives each part with a share a window."""
    # Beyond this, each part holds a whole window even without reaching back.
    enough = int((lookback + horizon + 2) / min(share for share in ratios if share > 0)) + 2
    lengths = np.arange(1, enough + 1)
    split = Split(_by_ratio(lengths, ratios), lookback, horizon)
    fits = np.ones(len(lengths), dtype=bool)
    for part, share in zip(PARTS, ratios, strict=True):
        if share > 0:
            fits &= split.windows(part)[1] > 0
    # Rounding can make one length fit and a longer one not: all from here on do.
    return int(lengths[np.flatnonzero(~fits)[-1]] + 1) if not fits.all() else 1
