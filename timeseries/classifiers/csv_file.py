"""Read labelled series from CSV files: wide (a series per row) or long (a step per row)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from ...core.errors import DataError, nearest
from ..data.options import ReadOptions, logger
from ..data.sniff import Dialect, sniff
from ..data.table import Columns, Table, load_table, to_numbers
from ..data.times import parse_times
from .panel import Panel

Layout = Literal["wide", "long"]
_LABEL_NAMES = ("label", "class", "target", "y")
_ID_NAMES = ("id", "series", "series_id", "case", "case_id", "sample", "sample_id")
_TIME_NAMES = ("time", "step", "t", "date", "datetime", "timestamp")


@dataclass(frozen=True)
class CsvOptions:
    """Choices for reading labelled series; None means: find out, and say what was found.

    Args:
        layout: ``wide``, a row per series, or ``long``, a row per step of a series.
        label: Column of the labels.
        id: Column that names the series.
        time: Column that orders a long file's steps.
        values: Columns of numbers; by default all that have no other part.
        read: How cells are written.
    """

    layout: Layout | None = None
    label: str | None = None
    id: str | None = None
    time: str | None = None
    values: list[str] | None = None
    read: ReadOptions = field(default_factory=ReadOptions)


def read_csv(path: Path, options: CsvOptions, *, labelled: bool = True) -> Panel:
    """Read series from a CSV file.

    A wide file has a row per series and a column per step; empty cells at a row's end make its series shorter. A long
    file has a row per step, with the series' id and label in each, and a column per channel.

    Args:
        path: The file.
        options: What is not to be found out.
        labelled: Whether labels are needed; else they are not looked at.

    Returns:
        The series; ``columns`` holds the part of each column, to read other files alike.

    Raises:
        DataError: Names row and column, what was found, what was expected, and what to do.
    """
    dialect = sniff(path, options.read)
    header = dialect.header
    _check_header(path, header)
    chosen = _find_parts(path, header, options)
    part = {**chosen, "label": _label_column(path, header, chosen["label"], labelled)}
    named = [name for name in (part["label"], part["id"], part["time"]) if name is not None]
    # The table reader wants a column that orders the rows, and reads it as text; a wide file has none.
    order = part["time"] or (named or header)[0]
    table = load_table(path, replace(options.read, time=order), named, needed="a row of values")
    if order not in named:
        table.frame[order] = _plain(table.frame[order], dialect)
    values = options.values or [name for name in table.frame.columns if name not in named]
    for name in named:
        table.has(name, "id")
    for name in values:
        table.has(name, "values")
    if not values:
        raise DataError(f"{path}: found no column of values beside {', '.join(named)}; expected at least one")
    read = _read_long if part["layout"] == "long" else _read_wide
    panel = read(table, {**part, "label": part["label"] if labelled else None}, list(values), options.read)
    return replace(panel, columns={**chosen, "values": list(values) if part["layout"] == "long" else None})


def _label_column(path: Path, header: Sequence[str], label: str, needed: bool) -> str | None:
    """Return the label column's name; None where the file has none and needs none."""
    if label in header:
        return label
    if not needed:
        return None
    found = ", ".join(header[:12]) + (", ..." if len(header) > 12 else "")
    raise DataError(
        f"{path}: no column {label!r}{nearest(label, header)} of labels; found {found}; name it with --data.label"
    )


def _plain(column: pd.Series, dialect: Dialect) -> pd.Series:
    """Write a text column's numbers with decimal points and without grouping."""
    if dialect.thousands is not None:
        column = column.str.replace(dialect.thousands, "", regex=False)
    return column.str.replace(dialect.decimal, ".", regex=False)


def _check_header(path: Path, header: Sequence[str]) -> None:
    numbers = pd.to_numeric(pd.Series(header), errors="coerce").notna()
    if numbers.all():
        raise DataError(
            f"{path}: row 1: found numbers alone ({', '.join(header[:3])}, ...), expected a header row of column "
            "names; write one, such as label,0,1,2,..."
        )


def _find_parts(path: Path, header: Sequence[str], options: CsvOptions) -> dict[str, Any]:
    """Decide the file's layout and the parts of its columns, and say what was guessed."""

    def named(known: Sequence[str]) -> str | None:
        return next((name for word in known for name in header if name.lower() == word), None)

    label = options.label or named(_LABEL_NAMES) or _LABEL_NAMES[0]
    series = options.id or named(_ID_NAMES)
    time = options.time or named(_TIME_NAMES)
    layout = options.layout or ("long" if series is not None and time is not None else "wide")
    if layout == "long":
        for part, name in (("id", series), ("time", time)):
            if name is None or name not in header:
                raise DataError(
                    f"{path}: no {part} column{f' {name!r}' if name else ''}{nearest(name or part, header)}; a long "
                    f"file needs one; found {', '.join(header[:12])}; name it with --data.{part}"
                )
    else:
        time = None
    parts = {"layout": layout, "label": label, "id": series, "time": time}
    given = {"layout": options.layout, "label": options.label, "id": options.id, "time": options.time}
    guessed = [f"{key}={value}" for key, value in parts.items() if given[key] is None and value is not None]
    if guessed:
        logger.warning("%s: read with %s (guessed; options --data.<name> override)", path, ", ".join(guessed))
    return parts


def _labels(table: Table, label: str | None) -> list[str] | None:
    if label is None:
        return None
    column = table.frame[label]
    if column.isna().any():
        at = column.index[column.isna()]
        raise DataError(
            f"{table.name}: {table.row(at[0])}, column {label!r}: found no label ({len(at)} such rows), expected one "
            "in each row; fill them in, or leave these rows out"
        )
    return [str(value).strip() for value in column]


def _numbers(table: Table, values: list[str], read: ReadOptions) -> np.ndarray:
    return to_numbers(table, Columns(table.time, None, tuple(values), (), ()), read.missing_value)


def _read_wide(table: Table, part: dict[str, Any], values: list[str], read: ReadOptions) -> Panel:
    numbers = _numbers(table, values, read)
    known = ~np.isnan(numbers)
    lengths = np.where(known.any(1), known.shape[1] - known[:, ::-1].argmax(1), 0)
    if not lengths.all():
        row = table.row(table.frame.index[int(lengths.argmin())])
        raise DataError(f"{table.name}: {row}: found no value at all, expected a series; leave the row out")
    rows = [table.row(at) for at in table.frame.index]
    names = rows if part["id"] is None else [str(name) for name in table.frame[part["id"]]]
    series = [one[:length, None] for one, length in zip(numbers, lengths, strict=True)]
    return Panel(table.name, ("value",), series, names, _labels(table, part["label"]), {})


def _read_long(table: Table, part: dict[str, Any], values: list[str], read: ReadOptions) -> Panel:
    frame, column = table.frame, part["id"]
    if frame[column].isna().any():
        at = frame.index[frame[column].isna()][0]
        raise DataError(f"{table.name}: {table.row(at)}, column {column!r}: found no name, expected a series' name")
    numbers = _numbers(table, values, read)
    codes, names = pd.factorize(frame[column])
    times = parse_times(table, read, codes.astype(np.int64)).values
    order = np.lexsort((times, codes))
    repeated = np.flatnonzero((np.diff(codes[order]) == 0) & (np.diff(times[order]) == 0))
    if len(repeated):
        at = frame.index[order[repeated[0] + 1]]
        raise DataError(
            f"{table.name}: {table.row(at)}: found the time {frame[part['time']][at]} of series "
            f"{frame[column][at]!r} a second time, expected each once; remove the row"
        )
    labels = _labels(table, part["label"])
    bounds = np.searchsorted(codes[order], np.arange(len(names) + 1))
    groups = [order[low:high] for low, high in pairwise(bounds)]
    whole = None if labels is None else [_one_label(table, part, rows, labels) for rows in groups]
    series = [numbers[rows] for rows in groups]
    return Panel(table.name, tuple(values), series, [str(name) for name in names], whole, {})


def _one_label(table: Table, part: dict[str, Any], rows: np.ndarray, labels: list[str]) -> str:
    first = int(rows.min())
    wrong = next((int(i) for i in np.sort(rows) if labels[i] != labels[first]), None)
    if wrong is not None:
        at = table.frame.index[wrong]
        raise DataError(
            f"{table.name}: {table.row(at)}, column {part['label']!r}: found {labels[wrong]!r} in series "
            f"{table.frame[part['id']][at]!r}, whose first row says {labels[first]!r}; a series has one label"
        )
    return labels[first]
