"""ForecastData: from a table to batches, and from forecasts back to a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
import pandas as pd
from torch import Tensor
from torch.utils.data import DataLoader

from ...core.errors import ConfigError, DataError
from ...core.sampler import evaluation_loader, train_loader
from .frame import FrameInfo, forecast_frame
from .options import Duplicates, Features, Fill, ReadOptions, Resample, TimeUnit, logger
from .scaling import Scale, SeriesScaling, StandardScaler
from .series import SeriesSet, read_series
from .spec import ForecastSpec
from .split import Split, SplitBy, split_series
from .table import Columns
from .windows import WindowArrays, WindowDataset


class ForecastData(L.LightningDataModule):
    """Series from a CSV file, split in time order, scaled, and cut into windows.

    Wide files have one row per time and a column per channel; long ones an id column too (``--data.id``). For columns
    whose future is known (``--data.known``), the file's last rows may carry them with empty targets: those rows are the
    future that ``predict`` forecasts.

    After ``setup``: `spec`, `scaler`, `frame` and `series` describe the data. `state_dict` goes into checkpoints: with
    it, ``test`` and ``predict`` scale by the training data and read the columns it had.

    Args:
        path: CSV file.
        target: Column or columns to forecast; may be left out where one numeric column is left.
        lookback: Rows of the past that a forecast is made from.
        horizon: Rows to forecast.
        features: S: the targets alone; MS: other numeric columns as past covariates; M: forecast all numeric columns.
        known: Numeric columns that are known in the future too (holidays, prices, weather forecasts).
        time: Time column; by default one named date, time, datetime, timestamp or ds, else the first.
        id: Column that tells several series in one file apart.
        batch_size: Windows per optimiser step, over all processes.
        num_workers: Loader processes; 0 loads in the training process, as suits data in memory.
        seed: Seed of the order of training windows.
        shuffle: Whether training windows are shuffled.
        split: How rows are divided: ratio, dates, or ett (12, 4 and 4 months of 30 days).
        ratios: Shares of training, validation and test rows in time order.
        val_from: First time of validation, for split=dates.
        test_from: First time of test, for split=dates.
        scale: Standard scaling over all series (global), for each series alone (series), or none.
        period: Rows in a season; by default by the step (hours 24, days 7, months 12, ...).
        delimiter: Character between cells; found out by default.
        decimal: Decimal sign; found out by default.
        thousands: Sign between groups of three digits; found out by default.
        encoding: Text encoding; found out by default.
        dayfirst: Whether 01/02/2020 is the first of February.
        time_unit: Unit of times that are numbers since 1970 (s, ms, us, ns), or step for plain counts.
        timezone: Time zone of the file's times, such as Europe/Berlin.
        freq: Step between rows as a pandas alias (h, 15min, D, MS); inferred by default.
        fill: Missing values and rows: error, mask (left out of the loss), ffill, zero, mean_so_far (past only).
        sort: Whether to sort rows by time.
        duplicates: Rows of one time: error, keep_first, keep_last, mean, sum.
        resample: Aggregate to steps of freq: none, mean, sum, first, last.
        missing_value: Number that stands for a missing value, such as -9999.
    """

    def __init__(
        self,
        path: str,
        target: str | list[str] | None = None,
        lookback: int = 168,
        horizon: int = 168,
        features: Features = "S",
        known: list[str] | None = None,
        time: str | None = None,
        id: str | None = None,
        batch_size: int = 32,
        num_workers: int = 0,
        seed: int = 0,
        shuffle: bool = True,
        split: SplitBy = "ratio",
        ratios: tuple[float, float, float] = (0.6, 0.2, 0.2),
        val_from: str | None = None,
        test_from: str | None = None,
        scale: Scale = "global",
        period: int | None = None,
        delimiter: str | None = None,
        decimal: str | None = None,
        thousands: str | None = None,
        encoding: str | None = None,
        dayfirst: bool | None = None,
        time_unit: TimeUnit | None = None,
        timezone: str | None = None,
        freq: str | None = None,
        fill: Fill = "error",
        sort: bool = False,
        duplicates: Duplicates = "error",
        resample: Resample = "none",
        missing_value: float | None = None,
    ) -> None:
        super().__init__()
        if lookback < 1 or horizon < 1:
            raise ConfigError(f"lookback is {lookback} and horizon {horizon}; both must be at least 1")
        self.source: str | Path | pd.DataFrame = path
        self.options = ReadOptions(
            time=time, target=target, id=id, features=features, known=known,
            delimiter=delimiter, decimal=decimal, thousands=thousands, encoding=encoding,
            dayfirst=dayfirst, time_unit=time_unit, timezone=timezone, freq=freq,
            fill=fill, sort=sort, duplicates=duplicates, resample=resample, missing_value=missing_value,
        )  # fmt: skip
        self.lookback, self.horizon = lookback, horizon
        self.batch_size, self.num_workers, self.seed, self.shuffle = batch_size, num_workers, seed, shuffle
        self.split_by, self.ratios = split, ratios
        self.val_from, self.test_from = val_from, test_from
        self.scale, self.period = scale, period
        self._restored: dict[str, Any] | None = None
        self._series: SeriesSet | None = None
        self._split: Split | None = None
        self._scaling: SeriesScaling | None = None
        self._arrays: WindowArrays | None = None

    @classmethod
    def from_frame(cls, frame: pd.DataFrame, **options: Any) -> ForecastData:
        """Take a data frame in place of a file; its index is the time column unless ``time`` names one.

        Args:
            frame: The table.
            options: The constructor's other arguments.
        """
        data = cls("DataFrame", **options)
        data.source = frame
        return data

    def setup(self, stage: str | None = None) -> None:
        """Read the table once, and divide it as the stage needs; the scaler sees training rows alone.

        For ``predict`` every observed row is the past, so an unfitted scaler is fitted on all of them.
        """
        if self._series is None:
            self._series = self._read()
        if stage != "predict" and self._split is None:
            self._split = split_series(
                self._series, self.lookback, self.horizon,
                by=self.split_by, ratios=self.ratios, val_from=self.val_from, test_from=self.test_from,
            )  # fmt: skip
            # A scaler of an earlier predict has seen all rows.
            self._set_scaling(None)
        if self._scaling is None:
            rows = self._series.lengths if self._split is None else self._split.train_rows
            state = None if self._restored is None else self._restored["scaling"]
            self._set_scaling(SeriesScaling.fit(self._series, rows, self.scale, state))

    def _set_scaling(self, scaling: SeriesScaling | None) -> None:
        self._scaling, self._arrays = scaling, None

    def _read(self) -> SeriesSet:
        if self._restored is None:
            return read_series(self.source, self.options)
        roles = Columns.from_dict(self._restored["columns"])
        freq = self.options.freq or self._restored["spec"]["freq"] or None
        named = not isinstance(self.source, pd.DataFrame) or roles.time in self.source.columns
        time = self.options.time or (roles.time if named else None)
        options = replace(self.options, time=time, freq=freq, id=self.options.id or roles.id)
        return read_series(self.source, options, roles)

    @property
    def series(self) -> SeriesSet:
        """The series in original units."""
        if self._series is None:
            raise RuntimeError("call setup() first")
        return self._series

    @property
    def split(self) -> Split:
        """The rows of training, validation and test."""
        if self._split is None:
            raise RuntimeError("call setup('fit'), setup('validate') or setup('test') first")
        return self._split

    @property
    def scaler(self) -> StandardScaler:
        """The scaler of all columns: targets, covariates, known."""
        return self._scaled.scaler

    @property
    def _scaled(self) -> SeriesScaling:
        if self._scaling is None:
            raise RuntimeError("call setup() first")
        return self._scaling

    @property
    def spec(self) -> ForecastSpec:
        """Sizes and names, as the networks need them."""
        columns, calendar = self.series.columns, self.series.calendar
        return ForecastSpec(
            lookback=self.lookback,
            horizon=self.horizon,
            channels=len(columns.targets),
            covariates=len(columns.covariates),
            known=len(columns.known),
            marks=len(calendar.mark_names),
            freq=calendar.freq,
            period=self.period or calendar.period,
            target_names=columns.targets,
        )

    @property
    def frame(self) -> FrameInfo:
        """Names, clock and scaler, to turn forecasts into a table."""
        columns = self.series.columns
        return FrameInfo(
            time=columns.time,
            id=columns.id,
            names=self.series.names,
            target_names=columns.targets,
            calendar=self.series.calendar,
            scaler=self.scaler.columns(slice(0, len(columns.targets))),
            groups=self._scaled.groups,
        )

    def forecast_frame(
        self,
        predictions: Tensor | np.ndarray,
        series: Tensor | np.ndarray | None = None,
        start: Tensor | np.ndarray | None = None,
        quantiles: Sequence[float] = (),
    ) -> pd.DataFrame:
        """Return forecasts as a table in original units; see `scanweave.timeseries.data.forecast_frame`.

        Args:
            predictions: (B, H, D) or (B, H, D, Q), scaled.
            series: (B,) as the batches give it; by default the series of the predict loader, in its order.
            start: (B,) as the batches give it; needed with ``series``.
            quantiles: (Q,) levels of the last axis.
        """
        if (series is None) != (start is None):
            raise ValueError("series and start belong together; pass both or neither")
        if series is None or start is None:
            which = self._long_enough()
            begin = self.series.lengths[which] - self.lookback
        else:
            which, begin = np.asarray(series), np.asarray(start)
        last = self.series.times[self.series.bounds[which] + begin + self.lookback - 1]
        return forecast_frame(predictions, self.frame, which, last, quantiles)

    def dataset(self, part: Literal["train", "val", "test"]) -> WindowDataset:
        """Return all windows of a part."""
        first, count = self.split.windows(part)
        return WindowDataset(self._shared(), first, count, self.lookback, self.horizon)

    def predict_dataset(self) -> WindowDataset:
        """Return one window for each series: its last lookback, and the future marks and known columns."""
        which = self._long_enough()
        tail = self.series.select(which).tail(self.lookback, self.horizon)
        groups = self._scaled.groups
        arrays = WindowArrays.build(tail, self.scaler, None if groups is None else groups[which], masked=self._masked)
        one, none = np.ones_like(which), np.zeros_like(which)
        offset = self.series.lengths[which] - self.lookback
        return WindowDataset(
            arrays, none, one, self.lookback, self.horizon, series=which, offset=offset, with_future=False
        )

    def backtest_windows(self, folds: int = 5, stride: int | None = None) -> list[WindowDataset]:
        """Return rolling-origin windows that end with each series, all forecasting test rows alone.

        Args:
            folds: Number of origins, `stride` rows apart.
            stride: Rows between two origins; by default the horizon.

        Returns:
            A dataset for each fold, oldest first, of one window per series; series too short for a fold are left out.

        Raises:
            ConfigError: The oldest fold would forecast rows before the test part in every series.
        """
        stride = stride or self.horizon
        if folds < 1 or stride < 1:
            raise ConfigError(f"folds is {folds} and stride {stride}; both must be at least 1")
        first, count = self.split.windows("test")
        datasets = []
        for back in range((folds - 1) * stride, -1, -stride):
            enough = count > back
            if not enough.any():
                raise ConfigError(
                    f"{folds} folds {stride} rows apart reach back before the test part; "
                    f"at most {1 + (int(count.max()) - 1) // stride} folds fit"
                )
            start = np.where(enough, first + count - 1 - back, 0)
            datasets.append(WindowDataset(self._shared(), start, enough.astype(np.int64), self.lookback, self.horizon))
        return datasets

    def loader(self, dataset: WindowDataset) -> DataLoader[Any]:
        """Return a loader over all windows of a dataset, in order."""
        return evaluation_loader(dataset, self.batch_size, **self._loading)

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the training windows in an order of (seed, epoch)."""
        dataset = self.dataset("train")
        return train_loader(dataset, self.batch_size, seed=self.seed, shuffle=self.shuffle, **self._loading)

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """Return all validation windows; nothing where their share of the rows is 0."""
        dataset = self.dataset("val")
        return self.loader(dataset) if len(dataset) else []

    def test_dataloader(self) -> DataLoader[Any] | list[Any]:
        """Return all test windows, the last incomplete batch included; nothing where their share of the rows is 0."""
        dataset = self.dataset("test")
        return self.loader(dataset) if len(dataset) else []

    def predict_dataloader(self) -> DataLoader[Any]:
        """Return each series' last window."""
        return self.loader(self.predict_dataset())

    def state_dict(self) -> dict[str, Any]:
        """Return what a trained model needs to read other data: sizes, columns, scaler; plain values."""
        if self._series is None or self._scaling is None:
            return {}
        return {
            "spec": self.spec.to_dict(),
            "columns": asdict(self._series.columns),
            "scaling": self._scaling.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over columns and scaler of a trained model; what was read before is read again where it must be.

        Raises:
            ConfigError: Lookback or horizon differ from the trained model's.
        """
        spec = state_dict["spec"]
        for name in ("lookback", "horizon"):
            if spec[name] != getattr(self, name):
                raise ConfigError(
                    f"--data.{name} is {getattr(self, name)}, but the model was trained with {spec[name]}"
                )
        stage = "predict" if self._split is None else "fit"
        self._restored = state_dict
        self._set_scaling(None)
        if self._series is None:
            return
        if Columns.from_dict(state_dict["columns"]).values != self._series.columns.values:
            self._series = self._split = None
        self.setup(stage)

    @property
    def _masked(self) -> bool:
        return self.options.fill == "mask"

    @property
    def _loading(self) -> dict[str, Any]:
        return {
            "num_workers": self.num_workers,
            "persistent_workers": self.num_workers > 0,
            "collate_fn": WindowDataset.collate,
        }

    def _shared(self) -> WindowArrays:
        if self._arrays is None:
            self._arrays = WindowArrays.build(self.series, self.scaler, self._scaled.groups, masked=self._masked)
        return self._arrays

    def _long_enough(self) -> np.ndarray:
        """Return the series that a forecast can be made from; log the others."""
        lengths = self.series.lengths
        which = np.flatnonzero(lengths >= self.lookback)
        if not len(which):
            raise DataError(
                f"{self.series.source}: found {lengths.max()} rows at most, expected {self.lookback} (lookback)"
            )
        if len(which) < len(lengths):
            logger.warning(
                "%s: no forecast for %d series of fewer than %d rows (lookback)",
                self.series.source, len(lengths) - len(which), self.lookback,
            )  # fmt: skip
        return which
