"""The clock of a data set: its step, its season, its calendar marks, its future."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from ...core.errors import ConfigError

# Steps of one unit in a season of that unit: minutes and hours in a day, days in a week, months in a year, ...
_SEASONS = {"s": 60, "min": 1440, "h": 24, "D": 7, "B": 5, "W": 52, "ME": 12, "QE": 4, "YE": 1}
_UNIT_OF = {
    "MS": "ME", "BME": "ME", "BMS": "ME", "CBME": "ME", "CBMS": "ME", "QS": "QE", "BQE": "QE", "BQS": "QE",
    "YS": "YE", "BYE": "YE", "BYS": "YE", "C": "B",
}  # fmt: skip
_MARKS: dict[str, Callable[[pd.DatetimeIndex], pd.Index]] = {
    "second": lambda times: times.second / 59,
    "minute": lambda times: times.minute / 59,
    "hour": lambda times: times.hour / 23,
    "day of week": lambda times: times.dayofweek / 6,
    "day of month": lambda times: (times.day - 1) / 30,
    "day of year": lambda times: (times.dayofyear - 1) / 365,
}
_MARKS_OF = {"s": 0, "min": 1, "h": 2, "D": 3, "B": 3, "W": 4, "ME": 5, "QE": 5, "YE": 6}


@dataclass(frozen=True)
class Calendar:
    """What the step between rows says about time.

    Args:
        freq: Step as a pandas offset alias; empty where rows are counted in steps, without dates.
        timezone: Zone that calendar marks and returned times are in; None for zoneless times.

    Raises:
        ConfigError: ``freq`` is no offset alias.
    """

    freq: str
    timezone: str | None = None

    def __post_init__(self) -> None:
        if self.freq:
            to_offset(self.freq)

    @cached_property
    def offset(self) -> pd.offsets.BaseOffset:
        """The step as a pandas offset."""
        return to_offset(self.freq)

    @cached_property
    def _unit(self) -> str:
        name = self.offset.name.partition("-")[0]
        return _UNIT_OF.get(name, name)

    @property
    def fixed_step(self) -> int | None:
        """Microseconds (or counted steps) between rows where that is always the same; None for days and above."""
        if not self.freq:
            return 1
        if isinstance(self.offset, pd.offsets.Tick) and self.offset.name != "D":
            return int(pd.Timedelta(self.offset) / pd.Timedelta(microseconds=1))
        return None

    @property
    def period(self) -> int:
        """Rows in one season: a day of hours or minutes, a week of days, a year of weeks or months; else 1."""
        if not self.freq or self._unit not in _SEASONS:
            return 1
        season = _SEASONS[self._unit]
        return season // math.gcd(season, self.offset.n)

    @property
    def mark_names(self) -> tuple[str, ...]:
        """The calendar marks that change from row to row at this step, finest first."""
        if not self.freq:
            return ()
        # Steps finer than a second take the marks of seconds; unknown ones those of days.
        finest = 0 if self._unit in ("ms", "us", "ns") else _MARKS_OF.get(self._unit, 3)
        return tuple(_MARKS)[finest:]

    def index(self, times: np.ndarray) -> pd.Index:
        """Turn integer times into a pandas index: dates in the calendar's zone, or step counts."""
        if not self.freq:
            return pd.Index(times)
        index = pd.DatetimeIndex(times.astype("datetime64[us]"))
        return index if self.timezone is None else index.tz_localize("UTC").tz_convert(self.timezone)

    def integers(self, index: pd.Index) -> np.ndarray:
        """Turn a pandas index back into integer times: `index`'s inverse."""
        if not self.freq:
            return index.to_numpy(dtype=np.int64)
        assert isinstance(index, pd.DatetimeIndex)
        if index.tz is not None:
            index = index.tz_convert("UTC").tz_localize(None)
        return index.to_numpy().astype("datetime64[us]").astype(np.int64)

    def after(self, last: int, steps: int) -> np.ndarray:
        """Return the integer times of the steps that follow a row.

        Args:
            last: Integer time of the row.
            steps: How many to return.

        Returns:
            (steps,) int64.
        """
        if (step := self.fixed_step) is not None:
            return last + step * np.arange(1, steps + 1, dtype=np.int64)
        start = self.index(np.array([last]))[0]
        return self.integers(pd.date_range(start, periods=steps + 1, freq=self.freq)[1:])

    def between(self, first: int, last: int) -> np.ndarray:
        """Return the integer times of all steps from one row's to another's, both included where they fit."""
        if (step := self.fixed_step) is not None:
            return np.arange(first, last + 1, step, dtype=np.int64)
        ends = self.index(np.array([first, last]))
        return self.integers(pd.date_range(ends[0], ends[1], freq=self.freq))

    def marks(self, times: np.ndarray) -> np.ndarray:
        """Return each time's calendar marks.

        Args:
            times: (N,) integer times.

        Returns:
            (N, M) float32 in [-0.5, 0.5], one column for each of `mark_names`.
        """
        marks = np.zeros((len(times), len(self.mark_names)), dtype=np.float32)
        index = self.index(times)
        for i, name in enumerate(self.mark_names):
            marks[:, i] = _MARKS[name](index).to_numpy() - 0.5  # type: ignore[arg-type]
        return marks


def to_offset(freq: str) -> pd.offsets.BaseOffset:
    """Return the pandas offset of an alias; raises a `ConfigError` that carries pandas' advice."""
    try:
        offset = pd.tseries.frequencies.to_offset(freq)
    except ValueError as error:
        advice = str(error).splitlines()[-1]
        raise ConfigError(
            f"--data.freq: {freq!r} is no step ({advice}); such are s, 15min, h, D, B, W, MS, ME, QS, YS"
        ) from None
    if offset.n < 1:
        raise ConfigError(f"--data.freq: the step {freq!r} does not go forward")
    return offset


def infer_freq(index: pd.DatetimeIndex) -> str:
    """Infer the step of times in ascending order, gaps allowed: the step that most rows take.

    Args:
        index: At least two different times; in their zone, as days may be 23 to 25 hours long there.

    Returns:
        A pandas offset alias.
    """
    if len(index) > 2 and (regular := pd.infer_freq(index)) is not None:
        return regular
    local = index.tz_localize(None) if index.tz is not None else index
    differences = np.diff(index.to_numpy())
    steps, counts = np.unique(differences, return_counts=True)
    step = pd.Timedelta(steps[counts.argmax()])
    days = step / pd.Timedelta(days=1)
    if days < 1:
        return pd.tseries.frequencies.to_offset(step).freqstr
    for low, high, start, end in ((28, 31, "MS", "ME"), (90, 92, "QS", "QE"), (365, 366, "YS", "YE")):
        if low <= days <= high and low <= (np.median(differences) / np.timedelta64(1, "D")) <= high:
            if (local.day == 1).all():
                return start if start == "MS" else f"{start}-{local[0]:%b}".upper()
            if local.is_month_end.all():
                return end if end == "ME" else f"{end}-{local[0]:%b}".upper()
    if days == 7:
        return f"W-{local[0]:%a}".upper()
    if days == 1 and len(index) > 7 and (local.dayofweek < 5).all():
        return "B"
    if days == int(days):
        return "D" if days == 1 else f"{int(days)}D"
    return pd.tseries.frequencies.to_offset(step).freqstr
