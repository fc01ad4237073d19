"""Find out how a text table is written: its encoding, its delimiter, its number signs."""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ...core.errors import DataError
from .options import ReadOptions, logger

_SAMPLE_BYTES = 1 << 18
_SAMPLE_ROWS = 500
_BINARY = {
    b"PK\x03\x04": "a zip archive (an Excel workbook is one); export it as CSV",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook; export it as CSV",
    b"\x1f\x8b": "gzip-compressed; unpack it first",
    b"PAR1": "a Parquet file; convert it to CSV, or pass a pandas DataFrame",
    b"\x89HDF": "an HDF5 file; convert it to CSV, or pass a pandas DataFrame",
}
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
# (decimal, thousands) in the order of belief: an earlier pair wins where both fit as many cells.
_SIGNS: tuple[tuple[str, str | None], ...] = (
    (".", None),
    (",", None),
    (".", ","),
    (",", "."),
    (",", " "),
    (",", "\xa0"),
    (",", "\u202f"),
    (".", " "),
    (".", "'"),
)
_NUMBER_LIKE = re.compile(r"[+-]?\d[\d., '\u00a0\u202f]*([eE][+-]?\d+)?")


@dataclass(frozen=True)
class Dialect:
    """How a file is written: the arguments of `pandas.read_csv`, and the names in its first row."""

    encoding: str
    delimiter: str
    decimal: str
    thousands: str | None
    header: tuple[str, ...]


def sniff(path: Path, options: ReadOptions) -> Dialect:
    """Find a CSV file's dialect; what the options name is taken as given.

    Args:
        path: The file.
        options: Those set among encoding, delimiter, decimal and thousands are not guessed.

    Returns:
        The dialect; a guess other than UTF-8 with commas and decimal points is logged in one line.

    Raises:
        DataError: The file is absent, empty, no text, or its dialect cannot be told.
    """
    if not path.is_file():
        raise DataError(f"{path}: {'is a folder' if path.is_dir() else 'no such file'}; expected a CSV file")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty (0 rows found); expected a header row and data rows")
    encoding = options.encoding or _find_encoding(path)
    try:
        with path.open(encoding=encoding, errors="replace", newline="") as file:
            text = file.read(_SAMPLE_BYTES)
    except LookupError:
        raise DataError(f"{path}: no encoding {encoding!r}; --data.encoding takes names like utf-8, latin-1") from None
    if len(text) == _SAMPLE_BYTES:
        text = text[: text.rfind("\n") + 1] or text
    if not text.strip():
        raise DataError(f"{path}: only blank rows found; expected a header row and data rows")
    delimiter = options.delimiter or _find_delimiter(path, text)
    rows = [row for row in _rows(path, text, delimiter) if any(cell.strip() for cell in row)]
    decimal, thousands = _find_signs(path, rows[1:], options)
    header = tuple(name.strip() or f"Unnamed: {i}" for i, name in enumerate(rows[0]))
    dialect = Dialect(encoding, delimiter, decimal, thousands, header)
    _say_guesses(path, dialect, options)
    return dialect


def field_counts(path: Path, dialect: Dialect) -> Iterator[int]:
    """Yield the number of cells in each row of a file, its header included; 0 for a blank row."""
    with path.open(encoding=dialect.encoding, newline="") as file:
        for row in csv.reader(file, delimiter=dialect.delimiter):
            yield 0 if len(row) == 1 and not row[0].strip() else len(row)


def _find_encoding(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(4096)
    for mark, what in _BINARY.items():
        if head.startswith(mark):
            raise DataError(f"{path}: expected a CSV text file, found {what}")
    # The longer marks stand first: UTF-32's begins with UTF-16's.
    for mark, encoding in _MARKS.items():
        if head.startswith(mark):
            return encoding
    if b"\0" in head:
        odd, even = head[1::2].count(0), head[::2].count(0)
        if max(odd, even) < len(head) // 4:
            raise DataError(f"{path}: expected a CSV text file, found zero bytes; a binary or damaged file")
        return "utf-16-le" if odd > even else "utf-16-be"
    decoder = codecs.getincrementaldecoder("utf-8")()
    with path.open("rb") as file:
        try:
            while chunk := file.read(1 << 20):
                decoder.decode(chunk)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            return "latin-1"
    return "utf-8"


def _rows(path: Path, text: str, delimiter: str) -> list[list[str]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        return [row for row, _ in zip(reader, range(_SAMPLE_ROWS), strict=False)]
    except csv.Error as error:
        place = f"row {reader.line_num}"
        raise DataError(f"{path}: {place}: {error}; expected a table, is a quote opened and never closed?") from error


def _find_delimiter(path: Path, text: str) -> str:
    def fit(delimiter: str) -> tuple[float, int]:
        widths = [len(row) for row in _rows(path, text, delimiter) if row]
        if not widths or widths[0] < 2:
            return 0.0, 0
        return sum(width == widths[0] for width in widths) / len(widths), widths[0]

    best = max(",;\t|", key=fit)
    if fit(best) == (0.0, 0):
        raise DataError(
            f"{path}: row 1: found one column, expected a time column and at least one column of values; "
            "pass --data.delimiter if the cells are divided by another sign than , ; tab |"
        )
    return best


def _pattern(decimal: str, thousands: str | None) -> re.Pattern[str]:
    whole = r"\d+" if thousands is None else rf"(\d+|[1-9]\d{{0,2}}({re.escape(thousands)}\d{{3}})+)"
    return re.compile(rf"[+-]?{whole}({re.escape(decimal)}\d*)?([eE][+-]?\d+)?")


def _find_signs(path: Path, rows: list[list[str]], options: ReadOptions) -> tuple[str, str | None]:
    if options.decimal is not None:
        return options.decimal, options.thousands
    cells = [cell.strip() for row in rows for cell in row]
    cells = [cell for cell in cells if _NUMBER_LIKE.fullmatch(cell)]
    pairs = [pair for pair in _SIGNS if options.thousands in (None, pair[1])] or [(".", options.thousands)]
    patterns = {pair: _pattern(*pair) for pair in pairs}
    fits = {pair: sum(pattern.fullmatch(cell) is not None for cell in cells) for pair, pattern in patterns.items()}
    best = max(pairs, key=lambda pair: fits[pair])
    # A few odd cells are errors in a file of decimal points, not a sign that the file is written otherwise.
    if fits[best] - fits[pairs[0]] <= 0.1 * len(cells):
        return pairs[0]
    comma, grouped = (",", None), (".", ",")
    if fits.get(comma) == fits.get(grouped) == fits[best]:
        example = next(cell for cell in cells if "," in cell)
        raise DataError(
            f"{path}: numbers like {example!r} can be read in two ways; "
            "pass --data.decimal ',' or --data.thousands ',' to say which is meant"
        )
    return best


def _say_guesses(path: Path, dialect: Dialect, options: ReadOptions) -> None:
    usual = {"encoding": ("utf-8", "utf-8-sig"), "delimiter": (",",), "decimal": (".",), "thousands": (None,)}
    said = [
        f"{name}={getattr(dialect, name)!r}"
        for name, values in usual.items()
        if getattr(options, name) is None and getattr(dialect, name) not in values
    ]
    if said:
        logger.warning("%s: read with %s (guessed; options --data.<name> override)", path, ", ".join(said))
