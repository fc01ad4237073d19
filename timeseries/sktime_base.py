"""What the sktime estimators share: windows of an indexed frame, one training, forecasts with its index."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from sktime.forecasting.base import BaseForecaster, ForecastingHorizon
from torch import Tensor

from ..core.errors import DataError
from ..core.sampler import evaluation_loader, train_loader
from .data.clock import Calendar
from .data.scaling import StandardScaler
from .data.spec import ForecastSpec
from .data.windows import WindowArrays, WindowDataset
from .quantiles import ConformalOffsets, at_levels, point_index
from .task import ForecastTask
from .training import seeded, train


class NetworkForecaster(BaseForecaster):
    """Base of the estimators: windows of the series train a network that forecasts the whole horizon at once.

    A subclass holds the network's parameters, and builds its task in ``_task``.
    """

    _tags: ClassVar = {
        "authors": ["scanweave developers"],
        "maintainers": ["scanweave developers"],
        "python_dependencies": ["torch", "lightning"],
        "y_inner_mtype": "pd.DataFrame",
        "X_inner_mtype": "pd.DataFrame",
        "capability:multivariate": True,
        "capability:exogenous": True,
        "capability:categorical_in_X": False,
        "capability:insample": False,
        "capability:pred_int": True,
        "capability:pred_int:insample": False,
        "capability:missing_values": True,
        "capability:random_state": True,
        "property:randomness": "derandomized",
        "capability:update": True,
        "requires-fh-in-fit": True,
    }
    # The estimator keeps the rows it needs itself; sktime's own copy is for those who turn it on.
    _config: ClassVar = {"remember_data": False}

    lookback: int | None
    sp: int | None
    quantiles: Sequence[float]
    validation: float
    max_epochs: int
    batch_size: int
    lr: float
    accelerator: str
    random_state: int | None

    def __post_init__(self) -> None:
        self._y = self._X = None

    def __dynamic_tags__(self) -> None:
        if not len(self.quantiles):
            self.set_tags(**{"capability:pred_int": False})

    def _task(self) -> ForecastTask:
        """Return the task, its network not yet built."""
        raise NotImplementedError(f"{type(self).__name__} must implement _task()")

    @property
    def _training(self) -> dict[str, Any]:
        return {"quantiles": [float(level) for level in self.quantiles] or None, "lr": self.lr}

    # --- sktime's hooks -------------------------------------------------------------------------------------------

    def _fit(self, y: pd.DataFrame, X: pd.DataFrame | None, fh: ForecastingHorizon) -> NetworkForecaster:
        horizon = int(max(fh.to_relative(self.cutoff)))
        self._calendar = _calendar(y.index)
        self._remember(y, X)
        self.spec_ = self._sizes(y, X, horizon)
        known = np.zeros((len(y), 0)) if X is None else X.to_numpy(dtype=np.float64)
        names = [str(name) for name in (*y.columns, *(() if X is None else X.columns))]
        values = np.concatenate((y.to_numpy(dtype=np.float64), known), axis=1)
        self.scaler_ = StandardScaler.fit(values, None, names, type(self).__name__)
        task = self._task()
        with seeded(self.random_state):
            task.set_context({"spec": self.spec_.to_dict()})
            task.build()
            self._train(task)
        return self

    def _update(self, y: pd.DataFrame, X: pd.DataFrame | None = None, update_params: bool = True) -> NetworkForecaster:
        """Add the new rows to the past; with ``update_params``, train on from the present weights on all rows."""
        self._remember(_joined(self._past_y, y), None if X is None else _joined(self._past_X, X))
        if update_params:
            task = self._task()
            with seeded(self.random_state):
                task.set_context({"spec": self.spec_.to_dict()})
                task.build()
                task.model.load_state_dict(self.network_.state_dict())
                self._train(task)
        return self

    def _predict(self, fh: ForecastingHorizon, X: pd.DataFrame | None) -> pd.DataFrame:
        values = self._forecast(X)
        point = values[..., point_index(self.quantiles)] if len(self.quantiles) else values
        steps = fh.to_relative(self.cutoff).to_numpy().astype(int) - 1
        index = fh.to_absolute_index(self.cutoff)
        return pd.DataFrame(point[steps], index=index, columns=self._past_y.columns)

    def _predict_quantiles(self, fh: ForecastingHorizon, X: pd.DataFrame | None, alpha: list[float]) -> pd.DataFrame:
        steps = fh.to_relative(self.cutoff).to_numpy().astype(int) - 1
        values = at_levels(self._forecast(X)[steps], self.quantiles, alpha)
        columns = pd.MultiIndex.from_product([self._get_varnames(), alpha])
        flat = values.reshape(len(steps), -1)
        return pd.DataFrame(flat, index=fh.to_absolute_index(self.cutoff), columns=columns)

    # --- windows --------------------------------------------------------------------------------------------------

    def _remember(self, y: pd.DataFrame, X: pd.DataFrame | None) -> None:
        self._past_y, self._past_X = y, X

    def _sizes(self, y: pd.DataFrame, X: pd.DataFrame | None, horizon: int) -> ForecastSpec:
        period = self.sp or self._calendar.period
        lookback = self.lookback
        if lookback is None:
            lookback = max(1, min(2 * max(period, horizon), (len(y) - horizon) // 2))
        if len(y) < lookback + horizon:
            raise DataError(
                f"{type(self).__name__}: y has {len(y)} rows, expected at least lookback + horizon = {lookback} + "
                f"{horizon} = {lookback + horizon}"
            )
        return ForecastSpec(
            lookback=lookback,
            horizon=horizon,
            channels=y.shape[1],
            known=0 if X is None else X.shape[1],
            marks=len(self._calendar.mark_names),
            freq=self._calendar.freq,
            period=period,
            target_names=tuple(str(name) for name in y.columns),
        )

    def _arrays(self, y: pd.DataFrame, X: pd.DataFrame | None) -> WindowArrays:
        channels = self.spec_.channels
        targets = y.to_numpy(dtype=np.float64)
        known = np.zeros((len(y), 0)) if X is None else X.to_numpy(dtype=np.float64)
        observed = ~np.isnan(targets)

        def scaled(values: np.ndarray, part: slice) -> Tensor:
            # A missing value becomes the training mean.
            return torch.from_numpy(np.nan_to_num(self.scaler_.columns(part).transform(values)).astype(np.float32))

        return WindowArrays(
            targets=scaled(targets, slice(0, channels)),
            observed=None if observed.all() else torch.from_numpy(observed),
            covariates=torch.zeros(len(y), 0),
            known=scaled(known, slice(channels, None)),
            marks=torch.from_numpy(_marks(self._calendar, y.index)),
            bounds=np.array([0, len(y)]),
        )

    def _train(self, task: ForecastTask) -> None:
        """Train on all windows but the last share, which chooses the epoch and calibrates the quantiles."""
        spec, arrays = self.spec_, self._arrays(self._past_y, self._past_X)
        count = len(self._past_y) - spec.lookback - spec.horizon + 1
        held = int(self.validation * count)

        def windows(first: int, number: int) -> WindowDataset:
            return WindowDataset(arrays, np.array([first]), np.array([number]), spec.lookback, spec.horizon)

        options: dict[str, Any] = {"collate_fn": WindowDataset.collate}
        seed = int(torch.randint(2**31, ()))
        training = train_loader(windows(0, count - held), self.batch_size, seed=seed, drop_last=False, **options)
        held_out = evaluation_loader(windows(count - held, held), self.batch_size, **options) if held else None
        train(task, training, held_out, max_epochs=self.max_epochs, accelerator=self.accelerator)
        self.network_ = task.model.eval()
        self.offsets_: ConformalOffsets | None = task.offsets if self.quantiles else None

    @torch.no_grad()
    def _forecast(self, X: pd.DataFrame | None) -> np.ndarray:
        """Return the forecast of all steps up to the horizon in original units: (H, D) or (H, D, Q)."""
        spec = self.spec_
        past = self._past_y.iloc[-spec.lookback :]
        future = pd.DataFrame(np.nan, index=_following(past.index, spec.horizon), columns=past.columns)
        y = pd.concat((past, future))
        known = None
        if spec.known:
            known = self._known(X, past.index, future.index)
        dataset = WindowDataset(
            self._arrays(y, known), np.array([0]), np.array([1]), spec.lookback, spec.horizon, with_future=False
        )
        forecast = self.network_(dataset.gather([0]))
        if self.offsets_ is not None:
            forecast = self.offsets_(forecast)
        scaled = np.moveaxis(forecast[0].double().numpy(), 1, -1)
        return np.moveaxis(self.scaler_.columns(slice(0, spec.channels)).inverse(scaled), -1, 1)

    def _known(self, X: pd.DataFrame | None, past: pd.Index, future: pd.Index) -> pd.DataFrame:
        """Return the exogenous rows of the window; steps of the future that X leaves out take the step before."""
        if X is None or self._past_X is None:
            raise DataError(f"{type(self).__name__}: X was given in fit, and predict needs its future rows; pass X")
        rows = self._past_X if X.index.isin(self._past_X.index).all() else pd.concat((self._past_X, X))
        rows = rows[~rows.index.duplicated(keep="last")].sort_index()
        whole = past.append(future)
        return rows.reindex(whole, method="ffill")


def _calendar(index: pd.Index) -> Calendar:
    """Return the clock of an index: its frequency where it has dates, counted steps elsewhere."""
    if isinstance(index, pd.PeriodIndex):
        assert index.freq is not None  # periods have one; index.freqstr is in another spelling
        return Calendar(index.freq.freqstr)
    if isinstance(index, pd.DatetimeIndex):
        freq = index.freqstr or pd.infer_freq(index)
        if freq is None:
            raise DataError("y: the times of its index have no regular step; resample y, or set its index's freq")
        return Calendar(freq, None if index.tz is None else str(index.tz))
    return Calendar("")


def _marks(calendar: Calendar, index: pd.Index) -> np.ndarray:
    times = index.to_timestamp() if isinstance(index, pd.PeriodIndex) else index
    return calendar.marks(calendar.integers(times)) if calendar.freq else np.zeros((len(index), 0), dtype=np.float32)


def _following(index: pd.Index, steps: int) -> pd.Index:
    """Return the index of the steps that follow."""
    if isinstance(index, pd.PeriodIndex):
        return pd.period_range(index[-1] + 1, periods=steps, freq=index.freq)
    if isinstance(index, pd.DatetimeIndex):
        freq = index.freq or pd.infer_freq(index)
        return pd.date_range(index[-1], periods=steps + 1, freq=freq)[1:]
    step = int(index[-1] - index[-2]) if len(index) > 1 else 1
    return pd.Index(index[-1] + step * np.arange(1, steps + 1))


def _joined(before: pd.DataFrame | None, new: pd.DataFrame) -> pd.DataFrame:
    """Return earlier and new rows, the new ones in place of earlier ones of the same time."""
    if before is None:
        return new
    both = pd.concat((before[~before.index.isin(new.index)], new))
    return both.sort_index()
