"""From tables to windows: reading, checking, splitting and scaling series, and forecasts back to tables."""

from .clock import Calendar, infer_freq
from .frame import FrameInfo, forecast_frame
from .module import ForecastData
from .options import ReadOptions
from .sample import sample_frame, write_sample
from .scaling import StandardScaler
from .series import SeriesSet, read_series
from .spec import ForecastSpec
from .split import Split, split_series
from .windows import WindowArrays, WindowDataset

__all__ = [
    "Calendar",
    "ForecastData",
    "ForecastSpec",
    "FrameInfo",
    "ReadOptions",
    "SeriesSet",
    "Split",
    "StandardScaler",
    "WindowArrays",
    "WindowDataset",
    "forecast_frame",
    "infer_freq",
    "read_series",
    "sample_frame",
    "split_series",
    "write_sample",
]
