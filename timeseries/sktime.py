"""The forecasters as sktime estimators, on the networks and the training of the command line."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import NormalDist
from typing import Any, ClassVar

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import torch
from lightning.pytorch.callbacks import Callback
from sktime.forecasting.base import BaseForecaster, ForecastingHorizon
from torch import Tensor

from ..core.errors import ConfigError, DataError
from ..core.sampler import evaluation_loader, train_loader
from .data.clock import Calendar
from .data.scaling import StandardScaler
from .data.spec import ForecastSpec
from .data.windows import WindowArrays, WindowDataset
from .models import TPGN, Scan
from .quantiles import ConformalOffsets, point_index
from .task import ForecastTask

DEFAULT_QUANTILES = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)


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
        with _seeded(self.random_state):
            task.set_context({"spec": self.spec_.to_dict()})
            task.build()
            self._train(task)
        return self

    def _update(self, y: pd.DataFrame, X: pd.DataFrame | None = None, update_params: bool = True) -> NetworkForecaster:
        """Add the new rows to the past; with ``update_params``, train on from the present weights on all rows."""
        self._remember(_joined(self._past_y, y), None if X is None else _joined(self._past_X, X))
        if update_params:
            task = self._task()
            with _seeded(self.random_state):
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
        train = train_loader(windows(0, count - held), self.batch_size, seed=seed, drop_last=False, **options)
        keeper = _KeepBest()
        with _quiet():
            trainer = pl.Trainer(
                max_epochs=self.max_epochs,
                accelerator=self.accelerator,
                devices=1,
                logger=False,
                callbacks=[keeper],
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                num_sanity_val_steps=0,
                use_distributed_sampler=False,
            )
            held_out = evaluation_loader(windows(count - held, held), self.batch_size, **options) if held else None
            trainer.fit(task, train, held_out)
        if keeper.state is not None:
            task.load_state_dict(keeper.state)
        task.cpu()
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


class TPGNForecaster(NetworkForecaster):
    """TPGN, a parallel gated network over the series folded by its season (Jia et al., NeurIPS 2024).

    Trained on all windows of the series; one pass forecasts the whole horizon. Quantiles are trained together, cannot
    cross, and are calibrated on the last windows, which are held out. Exogenous data enter with their past and
    their future; missing values of ``y`` are left out of the loss.

    Parameters
    ----------
    lookback : int or None, default=None
        Rows of the past that a forecast is made from. By default two seasons or two horizons, whichever is longer, and
        at most half of the series.
    sp : int or None, default=None
        Rows in a season, the columns of the fold; by default by the index's frequency, and 1 without dates.
    hidden_size : int, default=8
        Features of both branches.
    norm : bool, default=True
        Normalise each window.
    future_marks : bool, default=True
        Let the head read the calendar of the horizon.
    quantiles : sequence of float, default=(0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)
        Levels that are trained; others are read off between them. Empty for a point forecast of least squared error.
    validation : float, default=0.2
        Share of the windows, the last ones, that choose the epoch and calibrate the quantiles; 0 for none.
    max_epochs : int, default=30
        Passes over the training windows.
    batch_size : int, default=32
        Windows in an optimiser step.
    lr : float, default=1e-2
        Learning rate of Adam, times 0.9 after each epoch.
    accelerator : str, default="cpu"
        As Lightning's Trainer takes it: "cpu", "gpu", "auto".
    random_state : int or None, default=0
        Seed of weights and order; None for another one at each fit.

    Examples
    --------
    >>> from scanweave.timeseries.sktime import TPGNForecaster
    >>> from sktime.datasets import load_airline
    >>> y = load_airline()
    >>> forecaster = TPGNForecaster(sp=12, max_epochs=2)
    >>> forecaster.fit(y, fh=[1, 2, 3])
    TPGNForecaster(max_epochs=2, sp=12)
    >>> y_pred = forecaster.predict()
    >>> y_interval = forecaster.predict_interval(coverage=0.9)
    """

    def __init__(
        self,
        lookback: int | None = None,
        sp: int | None = None,
        hidden_size: int = 8,
        norm: bool = True,
        future_marks: bool = True,
        quantiles: Sequence[float] = DEFAULT_QUANTILES,
        validation: float = 0.2,
        max_epochs: int = 30,
        batch_size: int = 32,
        lr: float = 1e-2,
        accelerator: str = "cpu",
        random_state: int | None = 0,
    ) -> None:
        self.lookback = lookback
        self.sp = sp
        self.hidden_size = hidden_size
        self.norm = norm
        self.future_marks = future_marks
        self.quantiles = quantiles
        self.validation = validation
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.lr = lr
        self.accelerator = accelerator
        self.random_state = random_state
        super().__init__()

    def _task(self) -> ForecastTask:
        return TPGN(hidden_size=self.hidden_size, norm=self.norm, future_marks=self.future_marks, **self._training)

    @classmethod
    def get_test_params(cls, parameter_set: str = "default") -> list[dict[str, Any]]:
        """Return parameters that train for an instant."""
        small = {"lookback": 4, "hidden_size": 2, "max_epochs": 1, "batch_size": 64}
        return [small, {**small, "sp": 3, "quantiles": (), "validation": 0.0, "norm": False}]


class ScanForecaster(NetworkForecaster):
    """Any registered mixer (Mamba, LRU, minGRU, ...) over patches of the past, with a direct head for the horizon.

    Trained on all windows of the series; one pass forecasts the whole horizon. Quantiles are trained together, cannot
    cross, and are calibrated on the last windows, which are held out. Exogenous data enter with their past and
    their future; missing values of ``y`` are left out of the loss.

    Parameters
    ----------
    mixer : str, default="mamba"
        A registered mixer's name.
    depth : int, default=2
        Blocks.
    width : int, default=32
        Features of a token.
    patch : int, default=4
        Rows in a token.
    lookback : int or None, default=None
        Rows of the past that a forecast is made from. By default two seasons or two horizons, whichever is longer, and
        at most half of the series.
    sp : int or None, default=None
        Rows in a season; by default by the index's frequency, and 1 without dates.
    norm : bool, default=True
        Normalise each window.
    quantiles : sequence of float, default=(0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)
        Levels that are trained; others are read off between them. Empty for a point forecast of least squared error.
    validation : float, default=0.2
        Share of the windows, the last ones, that choose the epoch and calibrate the quantiles; 0 for none.
    max_epochs : int, default=30
        Passes over the training windows.
    batch_size : int, default=32
        Windows in an optimiser step.
    lr : float, default=3e-3
        Learning rate of Adam, times 0.9 after each epoch.
    accelerator : str, default="cpu"
        As Lightning's Trainer takes it: "cpu", "gpu", "auto".
    random_state : int or None, default=0
        Seed of weights and order; None for another one at each fit.

    Examples
    --------
    >>> from scanweave.timeseries.sktime import ScanForecaster
    >>> from sktime.datasets import load_airline
    >>> y = load_airline()
    >>> forecaster = ScanForecaster(mixer="mingru", sp=12, max_epochs=2)
    >>> forecaster.fit(y, fh=[1, 2, 3])
    ScanForecaster(max_epochs=2, mixer='mingru', sp=12)
    >>> y_pred = forecaster.predict()
    >>> y_interval = forecaster.predict_interval(coverage=0.9)
    """

    def __init__(
        self,
        mixer: str = "mamba",
        depth: int = 2,
        width: int = 32,
        patch: int = 4,
        lookback: int | None = None,
        sp: int | None = None,
        norm: bool = True,
        quantiles: Sequence[float] = DEFAULT_QUANTILES,
        validation: float = 0.2,
        max_epochs: int = 30,
        batch_size: int = 32,
        lr: float = 3e-3,
        accelerator: str = "cpu",
        random_state: int | None = 0,
    ) -> None:
        self.mixer = mixer
        self.depth = depth
        self.width = width
        self.patch = patch
        self.lookback = lookback
        self.sp = sp
        self.norm = norm
        self.quantiles = quantiles
        self.validation = validation
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.lr = lr
        self.accelerator = accelerator
        self.random_state = random_state
        super().__init__()

    def _task(self) -> ForecastTask:
        return Scan(
            mixer=self.mixer, depth=self.depth, width=self.width, patch=self.patch, norm=self.norm, **self._training
        )

    @classmethod
    def get_test_params(cls, parameter_set: str = "default") -> list[dict[str, Any]]:
        """Return parameters that train for an instant."""
        small = {"lookback": 4, "depth": 1, "width": 4, "max_epochs": 1, "batch_size": 64}
        return [
            {**small, "mixer": "mingru", "patch": 2},
            {**small, "mixer": "lru", "patch": 1, "quantiles": (), "validation": 0.0},
        ]


class _KeepBest(Callback):
    """Keeps the weights of the epoch with the least validation loss in memory."""

    def __init__(self) -> None:
        self.best = float("inf")
        self.state: dict[str, Tensor] | None = None

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        score = float(trainer.callback_metrics["val/loss"])
        if score < self.best:
            self.best = score
            self.state = {name: value.clone() for name, value in pl_module.state_dict().items()}


def at_levels(values: np.ndarray, quantiles: Sequence[float], alpha: Sequence[float]) -> np.ndarray:
    """Read quantiles of any level off trained ones, linear in the normal distribution's quantiles.

    Beyond the outermost levels the line through the two last ones goes on; one level stands for all.

    Args:
        values: (..., Q) rising quantiles.
        quantiles: Q rising levels.
        alpha: Levels asked for, each in (0, 1), or 0 and 1, which are infinite.

    Returns:
        (..., A).

    Raises:
        ConfigError: A level is outside [0, 1].
    """
    if any(not 0 <= level <= 1 for level in alpha):
        raise ConfigError(f"alpha: found {list(alpha)}, expected levels from 0 to 1")
    if len(quantiles) == 1:
        return np.repeat(values, len(alpha), axis=-1)
    normal = NormalDist()
    known = np.array([normal.inv_cdf(level) for level in quantiles])
    columns = []
    for level in alpha:
        if level in (0, 1):
            columns.append(np.full(values.shape[:-1], -np.inf if level == 0 else np.inf))
            continue
        place = normal.inv_cdf(level)
        i = int(np.clip(np.searchsorted(known, place), 1, len(known) - 1))
        share = (place - known[i - 1]) / (known[i] - known[i - 1])
        columns.append(values[..., i - 1] + share * (values[..., i] - values[..., i - 1]))
    return np.stack(columns, axis=-1)


def _calendar(index: pd.Index) -> Calendar:
    """Return the clock of an index: its frequency where it has dates, counted steps elsewhere."""
    if isinstance(index, pd.PeriodIndex):
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


@contextmanager
def _seeded(seed: int | None) -> Iterator[None]:
    """Draw from a generator of this seed, and leave the global one as it was."""
    with torch.random.fork_rng(devices=[]):
        if seed is None:
            torch.seed()
        else:
            torch.manual_seed(seed)
        yield


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Lightning's notes on devices and loaders to itself."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            warnings.filterwarnings("ignore", message=".*LeafSpec.*")
            yield
    finally:
        logger.setLevel(level)
