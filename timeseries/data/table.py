"""A CSV file or a data frame as columns of numbers, each cell traceable to its row."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ...core.errors import DataError, nearest
from .options import ReadOptions, logger
from .sniff import Dialect, field_counts, sniff

_TIME_NAMES = ("date", "time", "datetime", "timestamp", "ds")
_LIKE_A_DATE = re.compile(r"\d{4}-\d\d|\d{1,2}[./]\d{1,2}[./]\d{2,4}")
_LARGEST = 1e30


@dataclass(frozen=True)
class Table:
    """A table as read, before its cells are judged.

    Args:
        name: File name (or ``DataFrame``), for messages.
        frame: The cells; its index counts the data rows of the source from 0, and stays with a row for good.
        time: Name of the time column.
        first_row: What a message calls data row 0: a spreadsheet counts its header as row 1.
    """

    name: str
    frame: pd.DataFrame
    time: str
    first_row: int

    def row(self, position: int) -> str:
        """Return what a message calls the data row at a position of the frame's index."""
        return f"row {position + self.first_row}"

    def has(self, column: str, option: str) -> str:
        """Return the column's name if the table has it; else raise a `DataError` that offers the nearest."""
        if column not in self.frame.columns:
            found = ", ".join(map(str, self.frame.columns))
            raise DataError(
                f"{self.name}: no column {column!r}{nearest(column, self.frame.columns)}; found {found}; "
                f"set --data.{option}"
            )
        return column


@dataclass(frozen=True)
class Columns:
    """The part each column plays, by name."""

    time: str
    id: str | None
    targets: tuple[str, ...]
    covariates: tuple[str, ...]
    known: tuple[str, ...]

    @property
    def values(self) -> tuple[str, ...]:
        """All columns of numbers: targets, covariates, known."""
        return self.targets + self.covariates + self.known

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Columns:
        """Rebuild from plain values, lists in place of tuples."""
        targets, covariates, known = (tuple(values[part]) for part in ("targets", "covariates", "known"))
        return cls(values["time"], values["id"], targets, covariates, known)


def load_table(
    source: str | Path | pd.DataFrame,
    options: ReadOptions,
    texts: Sequence[str] = (),
    needed: str = "lookback + horizon rows",
) -> Table:
    """Read a CSV file, or take a data frame, and find its time column.

    Args:
        source: Path of a CSV file, or a frame. A frame's index is its time column unless ``options.time`` names one, or
            the index merely counts the rows and a column is named like a time.
        options: How to read it.
        texts: Further columns of a file that are text, whatever they look like.
        needed: What a message about an empty table expects at least.

    Returns:
        The table with at least one row; blank rows of a file are left out.

    Raises:
        DataError: The file or the frame is no table with a header and rows.
    """
    if isinstance(source, pd.DataFrame):
        table = _from_frame(source, options)
    else:
        table = _from_file(Path(source), options, texts)
    if table.frame.empty:
        raise DataError(f"{table.name}: found a header and 0 data rows; expected at least {needed}")
    return table


def _from_frame(frame: pd.DataFrame, options: ReadOptions) -> Table:
    frame = frame.rename(columns=str)
    repeated = frame.columns[frame.columns.duplicated()]
    if len(repeated):
        raise DataError(f"DataFrame: column {repeated[0]!r} stands there twice; names must differ")
    time = options.time
    if time is None and isinstance(frame.index, pd.RangeIndex) and frame.index.name is None:
        time = _named_like_a_time(frame.columns)
    if time is None:
        time = str(frame.index.name or "time")
        if time in frame.columns:
            raise DataError(f"DataFrame: the index and a column are both named {time!r}; pass time={time!r} or rename")
        frame = frame.assign(**{time: frame.index})
    table = Table("DataFrame", frame.set_axis(pd.RangeIndex(len(frame)), axis=0), time, 0)
    table.has(time, "time")
    return table


def _from_file(path: Path, options: ReadOptions, further: Sequence[str]) -> Table:
    dialect = sniff(path, options)
    repeated = [name for i, name in enumerate(dialect.header) if name in dialect.header[:i]]
    if repeated:
        raise DataError(f"{path}: row 1: column {repeated[0]!r} stands there twice; names must differ")
    time = options.time or _guess_time(path, dialect.header)
    # Read as text: pandas would take 01.02.2020 for a number where the point groups thousands, and 007 for 7.
    texts = [name for name in (time, options.id, *further) if name is not None]
    frame = _parse(path, dialect, texts)
    frame = _ungrouped(_without_unnamed(path, frame, keep=time), dialect, texts)
    table = Table(str(path), frame, time, 2)
    table.has(time, "time")
    frame = frame.dropna(how="all")
    _check_short_rows(table, path, dialect)
    return Table(str(path), frame, time, 2)


def _guess_time(path: Path, header: tuple[str, ...]) -> str:
    if any(_LIKE_A_DATE.match(name) for name in header[:1]):
        raise DataError(f"{path}: row 1: found data ({header[0]!r}), expected a header row of column names")
    return _named_like_a_time(header) or header[0]


def _named_like_a_time(names: Iterable[str]) -> str | None:
    lower: dict[str, str] = {}
    for name in names:
        lower.setdefault(name.lower(), name)
    return next((lower[name] for name in _TIME_NAMES if name in lower), None)


def _parse(path: Path, dialect: Dialect, texts: list[str]) -> pd.DataFrame:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            return pd.read_csv(
                path,
                sep=dialect.delimiter,
                names=list(dialect.header),
                header=0,
                decimal=dialect.decimal,
                thousands=dialect.thousands if (dialect.thousands or "").isascii() else None,
                encoding=dialect.encoding,
                dtype=dict.fromkeys(texts, str),
                index_col=False,
                skip_blank_lines=False,
                skipinitialspace=True,
                low_memory=False,
            )
    except pd.errors.ParserError as error:
        if place := re.search(r"Expected (\d+) fields in line (\d+), saw (\d+)", str(error)):
            wanted, row, saw = place.groups()
            raise DataError(f"{path}: row {row}: found {saw} cells, expected {wanted} as in the rows before") from None
        raise DataError(f"{path}: {str(error).strip()}; expected a table with the same cells in each row") from error
    except pd.errors.ParserWarning:
        raise DataError(f"{path}: row 2: found more cells than the {len(dialect.header)} names in row 1") from None
    except UnicodeError as error:
        raise DataError(
            f"{path}: no {dialect.encoding} text ({error}); pass --data.encoding (latin-1, utf-16)"
        ) from error


def _ungrouped(frame: pd.DataFrame, dialect: Dialect, texts: list[str]) -> pd.DataFrame:
    """Read numbers grouped by a sign that pandas does not take, as it wants one byte: the no-break spaces."""
    if dialect.thousands is None or dialect.thousands.isascii():
        return frame
    for name in frame.columns.difference(texts):
        if not pd.api.types.is_numeric_dtype(frame[name]):
            plain = frame[name].str.replace(dialect.thousands, "").str.replace(dialect.decimal, ".")
            numbers = pd.to_numeric(plain, errors="coerce")
            # A cell that is no number leaves its column as text, to be named with its row.
            if (numbers.isna() == plain.isna()).all():
                frame[name] = numbers
    return frame


def _without_unnamed(path: Path, frame: pd.DataFrame, keep: str) -> pd.DataFrame:
    """Drop nameless columns that hold nothing (a delimiter at each row's end) or a row count (a frame's index)."""
    for name in [name for name in frame.columns if name.startswith("Unnamed: ") and name != keep]:
        column = frame[name].dropna()
        if column.empty:
            frame = frame.drop(columns=name)
        elif pd.api.types.is_integer_dtype(column) and (np.diff(column.to_numpy()) == 1).all():
            logger.warning("%s: the nameless column of row numbers is left out", path)
            frame = frame.drop(columns=name)
    return frame


def _check_short_rows(table: Table, path: Path, dialect: Dialect) -> None:
    """Refuse rows with too few cells, which pandas fills up as if their last cells were merely empty."""
    if not table.frame.iloc[:, -1].isna().any():
        return
    width = 1 + max(i for i, name in enumerate(dialect.header) if name in table.frame.columns)
    for row, count in enumerate(field_counts(path, dialect), start=1):
        if 0 < count < width:
            raise DataError(f"{path}: row {row}: found {count} cells, expected at least {width} as in row 1")


def assign_columns(table: Table, options: ReadOptions) -> Columns:
    """Decide the part of each column from the options and the columns' content.

    Raises:
        DataError: A named column is absent, one column has two parts, or the target cannot be told.
    """
    targets = tuple(table.has(name, "target") for name in options.targets)
    known = tuple(table.has(name, "known") for name in options.known or ())
    series = table.has(options.id, "id") if options.id is not None else None
    named = [table.time, *((series,) if series else ()), *targets, *known]
    for i, name in enumerate(named):
        if name in named[:i]:
            raise DataError(f"{table.name}: column {name!r} is given two parts; time, id, target and known must differ")
    others = [] if options.features == "S" and targets else _numeric(table, skip=named)
    if options.features == "M":
        # The file's order, whichever of them the target option names.
        chosen = {*targets, *others}
        targets, others = tuple(name for name in table.frame.columns if name in chosen), []
    elif not targets:
        if len(others) != 1:
            raise DataError(
                f"{table.name}: found {len(others)} columns that could be the target ({', '.join(others) or 'none'}); "
                "name it with --data.target, or forecast all with --data.features M"
            )
        targets, others = (others[0],), []
    if not targets:
        raise DataError(f"{table.name}: no column of numbers found beside the time column; expected at least one")
    return Columns(table.time, series, targets, tuple(others) if options.features == "MS" else (), known)


def _numeric(table: Table, skip: list[str]) -> list[str]:
    """The columns of numbers, and those in which numbers are the rule (their other cells are then errors)."""
    found: list[str] = []
    dropped: list[str] = []
    for name in table.frame.columns:
        if name in skip:
            continue
        column = table.frame[name]
        numeric = pd.api.types.is_numeric_dtype(column)
        if not numeric and not pd.api.types.is_datetime64_any_dtype(column):
            texts = column.iloc[:1000].astype(str).str.replace(",", ".")
            numeric = bool(pd.to_numeric(texts, errors="coerce").notna().mean() > 0.5)
        (found if numeric else dropped).append(name)
    if dropped:
        logger.warning("%s: columns that hold no numbers are left out: %s", table.name, ", ".join(dropped))
    return found


def to_numbers(table: Table, columns: Columns, missing_value: float | None) -> np.ndarray:
    """Return the value columns as numbers, missing cells as NaN.

    Args:
        table: The table.
        columns: Which columns to convert.
        missing_value: A number that stands for a missing value.

    Returns:
        (rows, len(columns.values)) float64.

    Raises:
        DataError: A cell is no number, infinite, or larger than 1e30 in size; it is named by row and column.
    """
    numbers = np.empty((len(table.frame), len(columns.values)))
    for i, name in enumerate(columns.values):
        column = table.frame[name]
        if not pd.api.types.is_numeric_dtype(column):
            _check_text(table, name)
            column = pd.to_numeric(column)
        numbers[:, i] = column.to_numpy(dtype=np.float64, na_value=np.nan)
        if missing_value is not None:
            numbers[numbers[:, i] == missing_value, i] = np.nan
        wrong = np.flatnonzero(np.abs(numbers[:, i]) >= _LARGEST)
        if len(wrong):
            raise DataError(
                f"{table.name}: {table.row(column.index[wrong[0]])}, column {name!r}: found {numbers[wrong[0], i]:g} "
                f"({len(wrong)} such cells), expected a number below {_LARGEST:g} in size; correct the cells, or name "
                "the value with --data.missing_value if it stands for a missing one"
            )
        _warn_of_sentinels(table, name, numbers[:, i])
    return numbers


def _check_text(table: Table, name: str) -> None:
    column = table.frame[name]
    wrong = column[pd.to_numeric(column, errors="coerce").isna() & column.notna()]
    if wrong.empty:
        return
    value = str(wrong.iloc[0])
    advice = "correct the cells, or leave them empty and choose a policy with --data.fill"
    if re.fullmatch(r"\s*[+-]?\d+,\d+\s*", value):
        advice = "pass --data.decimal ',' if the comma is the decimal sign, or --data.thousands ',' if it groups digits"
    elif re.fullmatch(r"\s*[+-]?\d[\d.,' \u00a0]*\s*", value):
        advice = "pass --data.decimal and --data.thousands to say how numbers are written"
    raise DataError(
        f"{table.name}: {table.row(wrong.index[0])}, column {name!r}: found {value!r}, expected a number "
        f"({len(wrong)} such cells); {advice}"
    )


def _warn_of_sentinels(table: Table, name: str, numbers: np.ndarray) -> None:
    """Point to an extreme that comes again and again, far from all other values: often -9999 for 'missing'."""
    seen = numbers[np.isfinite(numbers)]
    for extreme in (seen.min(), seen.max()) if len(seen) else ():
        at = seen == extreme
        rest = seen[~at]
        if at.sum() < 2 or len(rest) < 10:
            continue
        low, high = rest.min(), rest.max()
        if high > low and max(low - extreme, extreme - high) > 3 * (high - low):
            logger.warning(
                "%s: column %r holds %g %d times, far from its other values (%g to %g); "
                "if it stands for a missing value, pass --data.missing_value %g",
                table.name, name, extreme, at.sum(), low, high, extreme,
            )  # fmt: skip
