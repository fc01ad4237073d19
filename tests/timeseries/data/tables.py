"""Small tables that the reading tests write and break."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd


def hours(count: int, start: str = "2024-01-01") -> list[str]:
    """Return hourly time stamps as text."""
    return [f"{time:%Y-%m-%d %H:%M:%S}" for time in pd.date_range(start, periods=count, freq="h")]


def frame(count: int = 60, columns: int = 1, freq: str = "h", tz: str | None = None, seed: int = 0) -> pd.DataFrame:
    """Return a frame with a time index named ``date`` and random columns a, b, c, ..."""
    values = np.random.default_rng(seed).normal(50, 9, (count, columns)).round(3)
    index = pd.date_range("2024-01-01", periods=count, freq=freq, tz=tz, name="date")
    return pd.DataFrame(values, index=index, columns=list("abcdefgh"[:columns]))


def write(folder: Path, text: str | bytes | list[str], encoding: str = "utf-8", name: str = "data.csv") -> Path:
    """Write lines, text or bytes as a file in a folder."""
    path = folder / name
    if isinstance(text, list):
        text = "\n".join(text) + "\n"
    path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
    return path


def hourly_lines(cells: list[str], header: str = "date,load") -> list[str]:
    """Return CSV lines: a header, then one hour for each cell."""
    return [header, *(f"{time},{cell}" for time, cell in zip(hours(len(cells)), cells, strict=True))]
