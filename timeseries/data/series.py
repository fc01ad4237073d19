"""Many series on one clock, as flat arrays; read from a CSV file or a data frame."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from ...core.errors import DataError
from .align import Aligner, Rows
from .clock import Calendar
from .options import ReadOptions
from .table import Columns, Table, assign_columns, load_table, to_numbers
from .times import parse_times


@dataclass(frozen=True)
class SeriesSet:
    """One or many series, their rows one after the other.

    Series s holds the rows ``bounds[s]:bounds[s + 1]``; the first ``lengths[s]`` of them are observed, the rest are
    future rows in which the known columns alone have values.

    Args:
        source: File name, for messages.
        names: (S,) names of the series; of a table without an id column, the one empty name.
        bounds: (S + 1,) int64.
        lengths: (S,) int64.
        times: (N,) int64 times, see `Calendar.index`.
        targets: (N, D) float64, NaN where missing.
        covariates: (N, P) float64.
        known: (N, K) float64.
        columns: The columns that these came from.
        calendar: The clock of all series.
    """

    source: str
    names: tuple[str, ...]
    bounds: np.ndarray
    lengths: np.ndarray
    times: np.ndarray
    targets: np.ndarray
    covariates: np.ndarray
    known: np.ndarray
    columns: Columns
    calendar: Calendar

    def __len__(self) -> int:
        return len(self.names)

    @property
    def has_missing(self) -> bool:
        """Whether an observed row lacks a target value."""
        return bool(np.isnan(self.targets[self.observed]).any())

    @property
    def observed(self) -> np.ndarray:
        """Mask (N,) of the observed rows."""
        return np.arange(len(self.times)) < np.repeat(self.bounds[:-1] + self.lengths, np.diff(self.bounds))

    def label(self, series: int) -> str:
        """Return what a message calls a series."""
        return f"series {self.names[series]!r}" if self.columns.id else "the series"

    def select(self, series: np.ndarray) -> SeriesSet:
        """Return some of the series, by their numbers."""
        rows = np.concatenate([np.arange(self.bounds[s], self.bounds[s + 1]) for s in series])
        return replace(
            self,
            names=tuple(self.names[s] for s in series),
            bounds=np.r_[0, np.cumsum(np.diff(self.bounds)[series])],
            lengths=self.lengths[series],
            times=self.times[rows],
            targets=self.targets[rows],
            covariates=self.covariates[rows],
            known=self.known[rows],
        )

    def tail(self, lookback: int, horizon: int) -> SeriesSet:
        """Return each series' last `lookback` observed rows and the `horizon` rows that follow, targets unknown.

        Args:
            lookback: Rows kept of each series; no series may be shorter.
            horizon: Future rows; their times follow the calendar, their known columns come from the table.

        Raises:
            DataError: Future values of the known columns are absent.
        """
        ends = self.bounds[:-1] + self.lengths
        given = self.bounds[1:] - ends
        if self.columns.known and given.min() < horizon:
            s = int(given.argmin())
            raise DataError(
                f"{self.source}: {self.label(s)} has {given[s]} rows after its last target, expected {horizon} "
                f"(horizon): rows with a time, an empty target and values of {', '.join(self.columns.known)}"
            )
        width = lookback + horizon
        past = ends[:, None] + np.arange(-lookback, 0)

        def extended(values: np.ndarray, future: np.ndarray | float) -> np.ndarray:
            both = np.empty((len(self), width, *values.shape[1:]), values.dtype)
            both[:, :lookback] = values[past]
            both[:, lookback:] = future
            return both.reshape(len(self) * width, *values.shape[1:])

        known = self.known[ends[:, None] + np.arange(horizon)] if self.columns.known else np.nan
        return replace(
            self,
            bounds=np.arange(len(self) + 1) * width,
            lengths=np.full(len(self), lookback),
            times=extended(self.times, np.stack([self.calendar.after(int(t), horizon) for t in self.times[ends - 1]])),
            targets=extended(self.targets, np.nan),
            covariates=extended(self.covariates, np.nan),
            known=extended(self.known, known),
        )


def read_series(
    source: str | Path | pd.DataFrame, options: ReadOptions | None = None, roles: Columns | None = None
) -> SeriesSet:
    """Read one or many series from a CSV file or a data frame, and put them on a regular clock.

    Wide tables have one row per time and a column per channel; long ones have an id column too. A frame's index is its
    time column unless ``options.time`` names one.

    Args:
        source: Path of a CSV file, or a frame.
        options: Which columns to read, and what to do with what is not as it should be.
        roles: The parts of the columns where they are settled, as for a trained model; else `options` tells them.

    Returns:
        The series, every cell judged.

    Raises:
        DataError: The table cannot be read for certain; the message names the place, what was found and what to do.
    """
    options = options or ReadOptions()
    table = load_table(source, options)
    columns = assign_columns(table, options) if roles is None else _settled(table, options, roles)
    series, names = _series_of(table, columns)
    times = parse_times(table, options, series)
    rows = Rows(series, times.values, to_numbers(table, columns, options.missing_value), table.frame.index.to_numpy())
    aligner = Aligner(table, columns, names, options)
    rows, calendar = aligner.align(rows, times)
    lengths = aligner.observed_lengths(rows)
    rows = aligner.filled(rows, calendar, lengths)
    first, second = len(columns.targets), len(columns.targets) + len(columns.covariates)
    return SeriesSet(
        source=table.name,
        names=tuple(names),
        bounds=rows.starts(),
        lengths=lengths,
        times=rows.times,
        targets=rows.values[:, :first],
        covariates=rows.values[:, first:second],
        known=rows.values[:, second:],
        columns=columns,
        calendar=calendar,
    )


def _settled(table: Table, options: ReadOptions, roles: Columns) -> Columns:
    """Check that a table has the columns that were settled on another one."""
    for name in roles.values:
        table.has(name, "path (the model was trained with this column)")
    series = options.id or roles.id
    return replace(roles, time=table.time, id=None if series is None else table.has(series, "id"))


def _series_of(table: Table, columns: Columns) -> tuple[np.ndarray, list[str]]:
    """Return the number of each row's series (in order of appearance), and the names."""
    if columns.id is None:
        return np.zeros(len(table.frame), dtype=np.int64), [""]
    ids = table.frame[columns.id]
    if ids.isna().any():
        at = ids.index[ids.isna()][0]
        raise DataError(f"{table.name}: {table.row(at)}, column {columns.id!r}: found no name, expected a series' name")
    series, names = pd.factorize(ids)
    return series.astype(np.int64), [str(name) for name in names]
