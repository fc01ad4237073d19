"""An hourly series to try things on: made by rule, the same for the same seed."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd


def sample_frame(hours: int = 8760, seed: int = 0) -> pd.DataFrame:
    """Make an hourly electric load of a small town, with the outdoor temperature as a covariate.

    The load has a daily shape for working days and another for days off, rises slowly over the years, follows heating
    below 15 degrees and cooling above 22, and carries autoregressive noise.

    Args:
        hours: Number of rows.
        seed: Seed of weather and noise.

    Returns:
        Columns ``date``, ``load`` (MW), ``temperature`` (degrees Celsius), ``holiday`` (0 or 1, known in advance).
    """
    random = np.random.default_rng(seed)
    times = pd.date_range("2022-01-01", periods=hours, freq="h")
    hour, year = times.hour.to_numpy(), (times.dayofyear.to_numpy() - 1) / 365.25
    weather = _autoregressive(random, hours, memory=0.985, scale=0.45)
    temperature = 11 - 10 * np.cos(2 * np.pi * (year - 0.055)) - 3.5 * np.cos(2 * np.pi * (hour - 3) / 24) + weather
    fixed = [(1, 1), (1, 6), (5, 1), (10, 3), (11, 1), (12, 25), (12, 26)]
    holiday = np.isin(times.month * 100 + times.day, [month * 100 + day for month, day in fixed])
    off = holiday | (times.dayofweek.to_numpy() >= 5)
    morning, evening = _peak(hour, 8, 2.5), _peak(hour, 19, 3.0)
    shape = np.where(
        off, 0.55 * _peak(hour, 12, 4.0) + 0.75 * evening, 1.0 * morning + 0.6 * _peak(hour, 13, 3.5) + evening
    )
    heating, cooling = np.clip(15 - temperature, 0, None), np.clip(temperature - 22, 0, None)
    load = 42 + 14 * shape - 3 * off + 0.65 * heating + 1.1 * cooling + 2.0 * np.arange(hours) / 8760
    load += _autoregressive(random, hours, memory=0.8, scale=0.55)
    return pd.DataFrame(
        {"date": times, "load": load.round(3), "temperature": temperature.round(2), "holiday": holiday.astype(int)}
    )


def write_sample(path: str | Path, hours: int = 8760, seed: int = 0, future: int = 0) -> Path:
    """Write `sample_frame` as a CSV file.

    Args:
        path: The file; a file that is there is replaced once the new one is whole.
        hours: Number of rows with a load.
        seed: Seed of weather and noise.
        future: Number of rows after them, with the holidays alone: what a forecast may know.

    Returns:
        The path.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".part")
    frame = sample_frame(hours + future, seed)
    frame.loc[hours:, ["load", "temperature"]] = np.nan
    frame.to_csv(beside, index=False, date_format="%Y-%m-%d %H:%M:%S")
    os.replace(beside, path)
    return path


def _peak(hour: np.ndarray, center: float, width: float) -> np.ndarray:
    distance = (hour - center + 12) % 24 - 12
    return np.exp(-0.5 * (distance / width) ** 2)


def _autoregressive(random: np.random.Generator, length: int, memory: float, scale: float) -> np.ndarray:
    noise = random.normal(scale=scale, size=length)
    values = np.empty(length)
    last = 0.0
    for i, shock in enumerate(noise):
        last = memory * last + shock
        values[i] = last
    return values
