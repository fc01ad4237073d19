"""Read a time column: text in many forms, numbers since 1970, plain step counts, time zones."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from zoneinfo import ZoneInfoNotFoundError

import numpy as np
import pandas as pd

from ...core.errors import ConfigError, DataError
from .options import ClockUnit, ReadOptions, TimeUnit, logger
from .table import Table

# An offset from UTC in a text's last nine characters; digits alone are one only after a clock time: 2024-01 is a month.
_OFFSET = re.compile(
    r"(Z|UTC|GMT|[+-]\d\d:\d\d"
    r"|(?:(?<=:\d\d)|(?<=[.,]\d)|(?<=[.,]\d\d)|(?<=[.,]\d{3})|(?<=\d{5}))[+-]\d\d"
    r"|(?:(?<=:\d\d)|(?<=[.,]\d)|(?<=[.,]\d\d)|(?<=\d{3}))[+-]\d{4})\s*$"
)
_OFFSET_ENDS = 9
_DAY_MONTH = re.compile(r"^\s*(\d{1,2})([/.\-])(\d{1,2})[/.\-](\d{4}|\d{2})(?!\d)")
_ISO = re.compile(r"^\s*\d{4}-\d\d(-\d\d([ T]\d\d:\d\d|\s*$)|\s*$)")
_UNITS: dict[ClockUnit, tuple[float, float]] = {
    "s": (1e8, 1e11),
    "ms": (1e11, 1e14),
    "us": (1e14, 1e17),
    "ns": (1e17, 1e19),
}

_MICROSECONDS: dict[ClockUnit, float] = {"s": 1e6, "ms": 1e3, "us": 1.0, "ns": 1e-3}
_YEAR_9000 = 2.2e17  # microseconds since 1970; pandas wraps around in silence beyond its range


@dataclass(frozen=True)
class Times:
    """A time column as integers.

    Args:
        values: (rows,) int64: microseconds since 1970 in UTC (zoneless times: as if in UTC), or step counts.
        timezone: Zone that the times are given back in; None for zoneless times.
        steps: Whether the values count steps rather than time.
    """

    values: np.ndarray
    timezone: str | None
    steps: bool = False


def parse_times(table: Table, options: ReadOptions, series: np.ndarray) -> Times:
    """Read a table's time column.

    Args:
        table: The table.
        options: ``dayfirst``, ``time_unit`` and ``timezone`` settle what the column leaves open.
        series: (rows,) number of each row's series; local times are placed in their zone series by series.

    Returns:
        The times, in the rows' order.

    Raises:
        DataError: A cell is empty or no time, or the column can be read in two ways.
    """
    column = table.frame[table.time]
    empty = column.index[column.isna()]
    if len(empty):
        raise DataError(
            f"{table.name}: {table.row(empty[0])}, column {table.time!r}: found no time ({len(empty)} such rows)"
        )
    if isinstance(column.dtype, pd.PeriodDtype):
        column = column.dt.to_timestamp()
    if pd.api.types.is_datetime64_any_dtype(column):
        stamps = column
    else:
        numbers = column if pd.api.types.is_numeric_dtype(column) else _all_digits(column)
        if numbers is not None:
            found = _from_numbers(table, numbers, options)
            if isinstance(found, Times):
                return found
            stamps = found
        else:
            stamps = _from_text(table, column.astype(str), options)
    return _place(table, stamps, options, series)


def _all_digits(column: pd.Series) -> pd.Series | None:
    if not re.fullmatch(r"\s*[+-]?\d+(\.\d*)?([eE]\+?\d+)?\s*", str(column.iloc[0])):
        return None
    numbers = pd.to_numeric(column, errors="coerce")
    return None if numbers.isna().any() else numbers


def _from_numbers(table: Table, numbers: pd.Series, options: ReadOptions) -> Times | pd.Series:
    unit: TimeUnit | None = options.time_unit
    middle = float(numbers.abs().median())
    whole = bool((numbers == np.floor(numbers)).all())
    if unit is None:
        clock = next((name for name, (low, high) in _UNITS.items() if low <= middle < high), None)
        if clock is not None:
            unit, example = clock, pd.to_datetime(numbers.iloc[0], unit=clock)
            logger.warning(
                "%s: column %r read as %s since 1970 (%s in the first row; --data.time_unit overrides)",
                table.name, table.time, unit, example,
            )  # fmt: skip
    if unit is None and whole:
        for low, high, form in ((1e7, 1e8, "%Y%m%d"), (1000, 3000, "%Y")):
            if low <= numbers.min() and numbers.max() < high:
                stamps = pd.to_datetime(numbers.astype(np.int64).astype(str), format=form, errors="coerce")
                if stamps.notna().all():
                    logger.warning("%s: column %r read as dates of the form %s", table.name, table.time, form)
                    return stamps
    if unit is None or unit == "step":
        if not whole:
            at = numbers.index[numbers != np.floor(numbers)][0]
            raise DataError(
                f"{table.name}: {table.row(at)}, column {table.time!r}: found {numbers[at]}, expected a time or a "
                "whole number of steps; pass --data.time_unit (s, ms, us, ns) for times since 1970"
            )
        return Times(numbers.to_numpy().astype(np.int64), None, steps=True)
    outside = numbers.abs() * _MICROSECONDS[unit] > _YEAR_9000
    if outside.any():
        at = numbers.index[outside][0]
        raise DataError(
            f"{table.name}: {table.row(at)}, column {table.time!r}: found {numbers[at]}, out of range as {unit} "
            "since 1970"
        )
    stamps = pd.to_datetime(numbers, unit=unit, utc=True)
    # Numbers since 1970 are moments in UTC; without a wish for a zone they are given back without one.
    return stamps if options.timezone else stamps.dt.tz_localize(None)


def _from_text(table: Table, text: pd.Series, options: ReadOptions) -> pd.Series:
    first = text.iloc[0]
    offsets = _offsets(table, text)
    zoned = offsets is not None
    if _ISO.match(first):
        if offsets is not None and offsets.iloc[0] in ("UTC", "GMT"):
            text = text.str.replace(r"\s*(UTC|GMT)\s*$", "Z", regex=True)  # ISO 8601 knows Z alone
        stamps = pd.to_datetime(text, format="ISO8601", errors="coerce", utc=zoned)
    else:
        dayfirst = _day_first(table, text, options) if _DAY_MONTH.match(first) else bool(options.dayfirst)
        with warnings.catch_warnings():
            # Where pandas sees no form in the first row, it reads each row by itself, which is what is wanted.
            warnings.filterwarnings("ignore", "Could not infer format")
            stamps = pd.to_datetime(text, dayfirst=dayfirst, errors="coerce", utc=zoned)
        odd = stamps.isna()
        # The first row's form rules; rows of another form (no clock time at midnight) are read one by one.
        if odd.any():
            stamps[odd] = pd.to_datetime(text[odd], format="mixed", dayfirst=dayfirst, errors="coerce", utc=zoned)
    if stamps.isna().any():
        at = stamps.index[stamps.isna()][0]
        raise DataError(
            f"{table.name}: {table.row(at)}, column {table.time!r}: found {text[at]!r}, expected a time like "
            f"{text[stamps.notna()].iloc[0] if stamps.notna().any() else '2024-01-31 13:00'!r} "
            f"({int(stamps.isna().sum())} such cells); if this is not the time column, name it with --data.time"
        )
    if zoned and options.timezone is None:
        return stamps.dt.tz_convert(_single_offset(table, text, offsets))
    return stamps


def _extract(text: pd.Series, pattern: re.Pattern[str]) -> pd.DataFrame:
    """Return a pattern's groups in each row; looked for once in each different text, as there are few."""
    codes, different = pd.factorize(text)
    return pd.Series(different).str.extract(pattern).iloc[codes].set_axis(text.index, axis=0)


def _offsets(table: Table, text: pd.Series) -> pd.Series | None:
    """Return the written UTC offset of each row, None where no row has one."""
    found = _extract(text.str[-_OFFSET_ENDS:], _OFFSET)[0]
    zoned = bool(found.notna().iloc[0])
    wrong = found.isna() if zoned else found.notna()
    if wrong.any():
        at = text.index[wrong][0]
        raise DataError(
            f"{table.name}: {table.row(at)}, column {table.time!r}: found {text[at]!r}, expected "
            f"{'an' if zoned else 'no'} offset from UTC as in {text.iloc[0]!r}; time zones must not be mixed"
        )
    return found if zoned else None


def _single_offset(table: Table, text: pd.Series, offsets: pd.Series | None) -> str:
    assert offsets is not None
    other = offsets != offsets.iloc[0]
    if other.any():
        at = text.index[other][0]
        raise DataError(
            f"{table.name}: {table.row(at)}, column {table.time!r}: the offset from UTC changes from "
            f"{offsets.iloc[0]} to {offsets[at]}; name the zone of the times, "
            "such as --data.timezone Europe/Berlin (or UTC)"
        )
    offset = str(offsets.iloc[0])
    if offset in ("Z", "UTC", "GMT") or not offset[1:].replace(":", "").strip("0"):
        return "UTC"
    digits = offset[1:].replace(":", "").ljust(4, "0")
    return f"UTC{offset[0]}{digits[:2]}:{digits[2:]}"


def _day_first(table: Table, text: pd.Series, options: ReadOptions) -> bool:
    """Tell dd/mm from mm/dd by the numbers above 12; refuse what stays open."""
    parts = _extract(text.str[:12], _DAY_MONTH)
    left, right = parts[0].astype(float) > 12, parts[2].astype(float) > 12
    for side, clash, order in ((left, options.dayfirst is False, "month/day"), (right, options.dayfirst, "day/month")):
        if clash and side.any():
            at = text.index[side][0]
            raise DataError(
                f"{table.name}: {table.row(at)}, column {table.time!r}: found {text[at]!r}, which is no {order} date; "
                "see --data.dayfirst"
            )
    if left.any() and right.any():
        one, two = text.index[left][0], text.index[right][0]
        raise DataError(
            f"{table.name}: column {table.time!r}: {table.row(one)} ({text[one]!r}) can only be day/month and "
            f"{table.row(two)} ({text[two]!r}) only month/day; expected one order"
        )
    if options.dayfirst is not None:
        return options.dayfirst
    if left.any() or right.any():
        return bool(left.any())
    if parts[1].iloc[0] == ".":
        logger.warning("%s: column %r read as day.month.year (--data.dayfirst overrides)", table.name, table.time)
        return True
    raise DataError(
        f"{table.name}: {table.row(text.index[0])}, column {table.time!r}: {text.iloc[0]!r} can be day/month or "
        "month/day and no row settles it; pass --data.dayfirst true or false"
    )


def _place(table: Table, stamps: pd.Series, options: ReadOptions, series: np.ndarray) -> Times:
    """Place the times in the wished zone and count them in microseconds."""
    if options.timezone is not None:
        check_timezone(options.timezone)
        if stamps.dt.tz is None:
            stamps = _localize(table, stamps, options.timezone, series)
        else:
            stamps = stamps.dt.tz_convert(options.timezone)
    zone = None if stamps.dt.tz is None else str(stamps.dt.tz)
    moments = stamps if zone is None else stamps.dt.tz_convert("UTC").dt.tz_localize(None)
    return Times(moments.to_numpy().astype("datetime64[us]").astype(np.int64), zone)


def check_timezone(name: str) -> None:
    """Raise a `ConfigError` for an unknown time zone."""
    try:
        pd.Timestamp(0).tz_localize(name)
    except (ZoneInfoNotFoundError, ValueError, KeyError, TypeError):
        raise ConfigError(f"--data.timezone: no time zone {name!r}; names are like UTC, Europe/Berlin") from None


def _localize(table: Table, stamps: pd.Series, timezone: str, series: np.ndarray) -> pd.Series:
    parts = []
    for _, rows in stamps.groupby(series, sort=False):
        try:
            parts.append(rows.dt.tz_localize(timezone, ambiguous="infer", nonexistent="raise"))
        except ValueError as error:
            raise DataError(
                f"{table.name}: column {table.time!r} in {timezone}: {error}; expected local times whose hours follow "
                "the zone's clock changes, in time order; if the clock was never changed, pass the offset "
                "(--data.timezone UTC+01:00) or UTC"
            ) from error
    return pd.concat(parts).loc[stamps.index]
