"""How a table is to be read: every choice a person may make, as one plain value."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Literal

from ...core.errors import ConfigError

logger = logging.getLogger("scanweave.timeseries.data")

Fill = Literal["error", "mask", "ffill", "zero", "mean_so_far"]
Duplicates = Literal["error", "keep_first", "keep_last", "mean", "sum"]
Resample = Literal["none", "mean", "sum", "first", "last"]
Features = Literal["S", "MS", "M"]
ClockUnit = Literal["s", "ms", "us", "ns"]
TimeUnit = ClockUnit | Literal["step"]


@dataclass(frozen=True)
class ReadOptions:
    """Choices for reading a table of series; None means: find out, and say what was found.

    Args:
        time: Time column; by default one named date, time, ..., else the first.
        target: Column or columns to forecast; may be left out where one numeric column is left.
        id: Column that tells the series of a long table apart.
        features: ``S`` reads the targets alone, ``MS`` the other numeric columns as past covariates too, ``M``
            forecasts every numeric column.
        known: Columns whose values are known in the future as well (numeric).
        delimiter: Character between two cells.
        decimal: Decimal sign, ``.`` or ``,``.
        thousands: Sign between groups of three digits.
        encoding: Text encoding, as Python names it.
        dayfirst: Whether 01/02/2020 is the first of February.
        time_unit: Unit of times given as numbers since 1970; ``step`` for a plain count of steps.
        timezone: Zone of the times (``Europe/Berlin``); local times are read in it and given back in it.
        freq: Step between rows as a pandas offset alias (``h``, ``15min``, ``MS``).
        fill: What to do with missing values and rows: refuse, leave out of the loss (``mask``), or fill from the past.
        sort: Whether to sort rows that are not in time order.
        duplicates: What to do with rows of the same series and time.
        resample: Aggregate over steps of ``freq``.
        missing_value: A number that stands for a missing value, such as -9999.
    """

    time: str | None = None
    target: str | list[str] | None = None
    id: str | None = None
    features: Features = "S"
    known: list[str] | None = None
    delimiter: str | None = None
    decimal: str | None = None
    thousands: str | None = None
    encoding: str | None = None
    dayfirst: bool | None = None
    time_unit: TimeUnit | None = None
    timezone: str | None = None
    freq: str | None = None
    fill: Fill = "error"
    sort: bool = False
    duplicates: Duplicates = "error"
    resample: Resample = "none"
    missing_value: float | None = None

    def __post_init__(self) -> None:
        if self.resample != "none" and self.freq is None:
            raise ConfigError(
                f"resample={self.resample!r} needs the step to resample to: pass --data.freq (h, D, MS, ...)"
            )
        if self.decimal is not None and self.decimal in (self.thousands, self.delimiter):
            raise ConfigError(f"decimal and another separator are both {self.decimal!r}; they must differ")

    @property
    def targets(self) -> tuple[str, ...]:
        """The target columns asked for; empty where they are to be found out."""
        if self.target is None:
            return ()
        return (self.target,) if isinstance(self.target, str) else tuple(self.target)
