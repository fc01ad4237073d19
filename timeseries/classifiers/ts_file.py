"""Read .ts files, the format of the UEA and UCR archive."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ...core.errors import DataError
from .panel import Panel

_LARGEST = 1e30
_MISSING = ("?", "nan", "")


def read_ts(path: Path, *, labelled: bool = True) -> Panel:
    """Read a .ts file: a header of ``@`` lines, then one series per line, ``1,2,3:4,5,6:label``.

    Channels are divided by colons, their values by commas; a missing value is ``?`` or ``NaN``.

    Args:
        path: The file.
        labelled: Whether labels are needed; else they are not looked at.

    Returns:
        The series, named by their line; labels as written, None where they are not needed.

    Raises:
        DataError: Names file and line where the file is not of this format, a value is no finite number, or there is
            no label.
    """
    has_labels = True
    header: dict[str, str] = {}
    series: list[np.ndarray] = []
    names: list[str] = []
    labels: list[str] = []
    has_data = False
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); expected a .ts text file") from error
    for number, line in enumerate(map(str.strip, lines), start=1):
        place = f"{path}: line {number}"
        if not line or line.startswith("#"):
            continue
        if not has_data:
            if not line.startswith("@"):
                raise DataError(f"{place}: found {line[:40]!r}, expected a line of the header (@...) or @data")
            key, _, value = line[1:].partition(" ")
            header[key.lower()] = value.strip()
            if key.lower() == "data":
                has_data, has_labels = True, _has_labels(path, header)
                if labelled and not has_labels:
                    raise DataError(f"{place}: found no labels (@classLabel false), expected one for each series")
            continue
        parts = line.split(":")
        label = parts.pop().strip() if has_labels else ""
        if labelled:
            labels.append(_label(place, label, header))
        series.append(_series(place, parts, width=series[0].shape[1] if series else None))
        names.append(f"line {number}")
    if not series:
        raise DataError(f"{path}: found {len(lines)} lines and no series; expected series after a line @data")
    channels = tuple(f"channel {i + 1}" for i in range(series[0].shape[1]))
    return Panel(str(path), channels, series, names, labels if labelled else None, {})


def _has_labels(path: Path, header: dict[str, str]) -> bool:
    if header.get("timestamps", "false").lower() == "true":
        raise DataError(f"{path}: found @timeStamps true; expected series without time stamps, or a long CSV file")
    if header.get("targetlabel", "false").lower() == "true":
        raise DataError(
            f"{path}: found @targetLabel true, a file for regression; expected class labels (@classLabel true ...); "
            "ScanRegressor of scanweave.timeseries.sktime learns numbers"
        )
    return header.get("classlabel", "true").split(" ")[0].lower() == "true"


def _label(place: str, label: str, header: dict[str, str]) -> str:
    known = header.get("classlabel", "").split()[1:]
    if label in _MISSING or label.lower() == "nan":
        raise DataError(f"{place}: found no label ({label!r}), expected one after the last colon")
    if known and label.lower() not in (name.lower() for name in known):
        raise DataError(
            f"{place}: found the label {label!r}, expected one of {', '.join(known)} (the line @classLabel)"
        )
    return label


def _series(place: str, parts: list[str], width: int | None) -> np.ndarray:
    """Return (L, D) values of a line's channels."""
    if width is not None and len(parts) != width:
        raise DataError(f"{place}: found {len(parts)} channels, expected {width} as in the first series")
    channels = [_channel(f"{place}, channel {i}", part.split(",")) for i, part in enumerate(parts, start=1)]
    lengths = {len(channel) for channel in channels}
    if len(lengths) != 1:
        listed = ", ".join(str(len(channel)) for channel in channels)
        raise DataError(f"{place}: found channels of {listed} values; expected the same number in each channel")
    return np.stack(channels, axis=1)


def _channel(place: str, cells: list[str]) -> np.ndarray:
    values = np.empty(len(cells))
    for i, cell in enumerate(cells):
        text = cell.strip().lower()
        try:
            values[i] = np.nan if text in _MISSING else float(text)
        except ValueError:
            raise DataError(f"{place}, value {i + 1}: found {cell.strip()!r}, expected a number or ?") from None
        if abs(values[i]) >= _LARGEST:
            raise DataError(
                f"{place}, value {i + 1}: found {values[i]:g}, expected a number below {_LARGEST:g} in size"
            )
    if np.isnan(values).all():
        raise DataError(f"{place}: found no value at all, expected at least one")
    return values
