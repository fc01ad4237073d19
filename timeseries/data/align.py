"""Put rows on a regular clock: order, duplicates, step, gaps, resampling, missing values."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pandas as pd

from ...core.errors import DataError
from .clock import Calendar, infer_freq
from .options import ReadOptions, logger
from .table import Columns, Table
from .times import Times


@dataclass(frozen=True)
class Rows:
    """Rows of one or many series, as arrays of one length.

    Args:
        series: (N,) number of the series, in ascending blocks once ordered.
        times: (N,) integer times, see `Times`.
        values: (N, C) float64, NaN where missing; the columns of `Columns.values`.
        origin: (N,) data row of the source, -1 for a row that was put in.
    """

    series: np.ndarray
    times: np.ndarray
    values: np.ndarray
    origin: np.ndarray

    def take(self, index: np.ndarray) -> Rows:
        """Return the rows at an index or under a mask."""
        return Rows(self.series[index], self.times[index], self.values[index], self.origin[index])

    def starts(self) -> np.ndarray:
        """Return the bounds (S + 1,) of the series' blocks."""
        return np.flatnonzero(np.r_[True, self.series[1:] != self.series[:-1], True])


class Aligner:
    """The steps from rows as read to rows on a regular clock; each refuses, or does what an option asks for.

    Args:
        table: Where the rows come from, for messages.
        columns: The parts of its columns.
        names: Names of the series.
        options: What to do with disorder, duplicates, gaps and missing values.
    """

    def __init__(self, table: Table, columns: Columns, names: list[str], options: ReadOptions) -> None:
        self.table = table
        self.columns = columns
        self.names = names
        self.options = options

    def align(self, rows: Rows, times: Times) -> tuple[Rows, Calendar]:
        """Return the rows on a regular clock, and the clock; missing values are still NaN.

        Raises:
            DataError: Times are unordered, doubled or irregular, or rows are missing, and no option says what to do.
        """
        rows = self._ordered(rows)
        show = Calendar("" if times.steps else "h", times.timezone)
        rows = self._without_duplicates(rows, show)
        calendar = Calendar(self._freq(rows, times, show), times.timezone)
        if self.options.resample != "none":
            return self._resampled(rows, calendar), calendar
        return self._on_grid(rows, calendar), calendar

    def _where(self, rows: Rows, at: int, calendar: Calendar) -> str:
        """Name a row: its place in the source, its time, its series where there are several."""
        time = calendar.index(rows.times[at : at + 1])[0]
        series = f" of series {self.names[rows.series[at]]!r}" if len(self.names) > 1 else ""
        return f"{self.table.row(int(rows.origin[at]))}{series} ({time})"

    def _ordered(self, rows: Rows) -> Rows:
        rows = rows.take(np.argsort(rows.series, kind="stable"))
        back = (np.diff(rows.times) < 0) & (np.diff(rows.series) == 0)
        if not back.any():
            return rows
        at = int(np.flatnonzero(back)[0])
        place = self.table.row(int(rows.origin[at + 1]))
        if not self.options.sort:
            raise DataError(
                f"{self.table.name}: {place}, column {self.table.time!r}: found an earlier time than in the row before "
                f"({int(back.sum())} such rows), expected ascending times; pass --data.sort true to sort the rows"
            )
        logger.warning("%s: rows sorted by time; the first out of order is %s", self.table.name, place)
        return rows.take(np.lexsort((rows.times, rows.series)))

    def _without_duplicates(self, rows: Rows, show: Calendar) -> Rows:
        same = (np.diff(rows.times) == 0) & (np.diff(rows.series) == 0)
        if not same.any():
            return rows
        policy = self.options.duplicates
        at = int(np.flatnonzero(same)[0])
        if policy == "error":
            several = (
                ""
                if self.columns.id
                else "; if several series stand in one file, name the column that tells them apart with --data.id"
            )
            raise DataError(
                f"{self.table.name}: {self._where(rows, at + 1, show)}: found the same time as in "
                f"{self.table.row(int(rows.origin[at]))} ({int(same.sum())} such rows), expected each time once; "
                f"pass --data.duplicates (keep_first, keep_last, mean, sum){several}; local times around a "
                "clock change need --data.timezone"
            )
        logger.warning("%s: %d rows of a time already seen; %s of each group used", self.table.name, same.sum(), policy)
        first, last = np.r_[True, ~same], np.r_[~same, True]
        if policy in ("keep_first", "keep_last"):
            return rows.take(first if policy == "keep_first" else last)
        groups = pd.DataFrame(rows.values).groupby(np.cumsum(first), sort=False)
        merged = groups.mean() if policy == "mean" else groups.sum(min_count=1)
        return replace(rows.take(first), values=merged.to_numpy())

    def _freq(self, rows: Rows, times: Times, show: Calendar) -> str:
        if times.steps:
            if self.options.freq:
                raise DataError(
                    f"{self.table.name}: column {self.table.time!r} holds plain step counts, which have no step "
                    f"{self.options.freq!r}; pass --data.time_unit (s, ms, us, ns) if they are times since 1970"
                )
            return ""
        if self.options.freq:
            return self.options.freq
        bounds = rows.starts()
        longest = int(np.diff(bounds).argmax())
        index = show.index(rows.times[bounds[longest] : bounds[longest + 1]])
        if len(index) < 2:
            raise DataError(
                f"{self.table.name}: found {len(index)} row in the longest series, expected at least two to tell "
                "the step between rows (or pass --data.freq), and lookback + horizon for training"
            )
        assert isinstance(index, pd.DatetimeIndex)
        return infer_freq(index)

    def _resampled(self, rows: Rows, calendar: Calendar) -> Rows:
        if not calendar.freq:
            raise DataError(
                f"{self.table.name}: column {self.table.time!r} holds plain step counts; they cannot be resampled"
            )
        bounds = rows.starts()
        parts = []
        for low, high in pairwise(bounds):
            bins = pd.DataFrame(rows.values[low:high], index=calendar.index(rows.times[low:high])).resample(
                calendar.freq
            )
            table = bins.sum(min_count=1) if self.options.resample == "sum" else getattr(bins, self.options.resample)()
            times = calendar.integers(table.index)
            # A bin goes by the first source row that is not before it.
            origin = rows.origin[low:high][np.searchsorted(rows.times[low:high], times).clip(max=high - low - 1)]
            parts.append(Rows(np.full(len(times), rows.series[low]), times, table.to_numpy(), origin))
        return _joined(parts)

    def _on_grid(self, rows: Rows, calendar: Calendar) -> Rows:
        """Check every row against the clock, and put in rows (of NaN) where some are missing."""
        bounds = rows.starts()
        if (step := calendar.fixed_step) is not None:
            regular = np.diff(rows.times) == step
            regular[bounds[1:-1] - 1] = True
            if regular.all():
                return rows
        parts, spans, missing = [], [], 0
        for low, high in pairwise(bounds):
            times = rows.times[low:high]
            if calendar.fixed_step and (times[-1] - times[0]) // calendar.fixed_step > 20 * len(times) + 1000:
                self._refuse_step(rows, low + 1 + int(np.diff(times).argmax()), calendar)
            grid = calendar.between(int(times[0]), int(times[-1]))
            at = np.searchsorted(grid, times)
            off = (
                (at == len(grid)) | (grid[at.clip(max=len(grid) - 1)] != times)
                if len(grid)
                else np.ones(len(times), bool)
            )
            if off.any():
                self._refuse_step(rows, low + int(np.flatnonzero(off)[0]), calendar)
            part = Rows(
                np.full(len(grid), rows.series[low]),
                grid,
                np.full((len(grid), rows.values.shape[1]), np.nan),
                np.full(len(grid), -1, dtype=np.int64),
            )
            part.values[at], part.origin[at] = rows.values[low:high], rows.origin[low:high]
            for gap in np.flatnonzero(np.diff(at) > 1):
                missing += int(at[gap + 1] - at[gap] - 1)
                spans.append((low + int(gap), int(at[gap + 1] - at[gap] - 1)))
            parts.append(part)
        if spans:
            self._judge_gaps(rows, calendar, spans, missing)
        return _joined(parts)

    def _refuse_step(self, rows: Rows, at: int, calendar: Calendar) -> None:
        how = "given" if self.options.freq else "found in most rows"
        raise DataError(
            f"{self.table.name}: {self._where(rows, at, calendar)}, column {self.table.time!r}: found a time off the "
            f"step {calendar.freq or '1'!r} {how}, expected regular times; pass --data.freq, or --data.freq with "
            "--data.resample mean to average over steps, or --data.timezone if clocks were changed"
        )

    def _judge_gaps(self, rows: Rows, calendar: Calendar, spans: list[tuple[int, int]], missing: int) -> None:
        listed = "; ".join(f"{count} after {self._where(rows, at, calendar)}" for at, count in spans[:3])
        more = f"; and {len(spans) - 3} more" if len(spans) > 3 else ""
        found = f"{missing} rows missing in {len(spans)} gaps at step {calendar.freq or '1'!r}: {listed}{more}"
        if self.options.fill == "error":
            raise DataError(
                f"{self.table.name}: {found}; expected every row; pass --data.fill (mask, ffill, zero, mean_so_far), "
                "or --data.timezone if local clocks were changed"
            )
        logger.warning("%s: %s; fill=%s", self.table.name, found, self.options.fill)

    def observed_lengths(self, rows: Rows) -> np.ndarray:
        """Return the number of rows (S,) of each series up to its last target.

        Where columns are known in advance, the rows after it are the future; else every row counts as observed.

        Args:
            rows: Rows on a regular clock.
        """
        bounds = rows.starts()
        lengths = np.diff(bounds)
        if not self.columns.known:
            return lengths
        empty = np.isnan(rows.values[:, : len(self.columns.targets)]).all(1)
        for i, (low, high) in enumerate(pairwise(bounds)):
            present = np.flatnonzero(~empty[low:high])
            lengths[i] = present[-1] + 1 if len(present) else 0
        return lengths

    def filled(self, rows: Rows, calendar: Calendar, lengths: np.ndarray) -> Rows:
        """Return the rows with missing values treated as ``options.fill`` says; only the past is used.

        Args:
            rows: Rows on a regular clock.
            calendar: The clock.
            lengths: (S,) rows up to the last target; targets and past covariates are not filled after it.

        Raises:
            DataError: Values are missing and the policy is ``error``, or there is no past to fill from.
        """
        bounds = rows.starts()
        future = np.arange(len(rows.times)) >= np.repeat(bounds[:-1] + lengths, np.diff(bounds))
        wanted = np.isnan(rows.values)
        wanted[future, : rows.values.shape[1] - len(self.columns.known)] = False
        if not wanted.any() or self.options.fill == "mask":
            return rows
        if self.options.fill == "error":
            self._refuse_missing(rows, calendar, wanted, "pass --data.fill (mask, ffill, zero, mean_so_far)")
        values = np.where(wanted, _past_fill(rows, self.options.fill), rows.values)
        left = np.isnan(values) & wanted
        if left.any():
            self._refuse_missing(
                rows,
                calendar,
                left,
                f"there is no earlier value for fill={self.options.fill!r}; remove the rows or use mask or zero",
            )
        logger.warning("%s: %d missing values filled (fill=%s)", self.table.name, wanted.sum(), self.options.fill)
        return replace(rows, values=values)

    def _refuse_missing(self, rows: Rows, calendar: Calendar, wanted: np.ndarray, advice: str) -> None:
        at, column = np.argwhere(wanted)[0]
        raise DataError(
            f"{self.table.name}: {self._where(rows, at, calendar)}, column {self.columns.values[column]!r}: found no "
            f"value ({int(wanted.sum())} such cells), expected a number in every row; {advice}"
        )


def _past_fill(rows: Rows, policy: str) -> np.ndarray:
    """Return what each cell would be filled with, from its own series and from earlier rows alone."""
    if policy == "zero":
        return np.zeros_like(rows.values)
    frame = pd.DataFrame(rows.values)
    if policy == "ffill":
        return frame.groupby(rows.series).ffill().to_numpy()
    total = frame.fillna(0.0).groupby(rows.series).cumsum()
    count = frame.notna().groupby(rows.series).cumsum()
    return (total / count.where(count > 0)).to_numpy()


def _joined(parts: list[Rows]) -> Rows:
    return Rows(
        *(
            np.concatenate(columns)
            for columns in zip(*((p.series, p.times, p.values, p.origin) for p in parts), strict=True)
        )
    )
