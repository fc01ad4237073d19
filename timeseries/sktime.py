"""The forecasters, the classifier and the regressor as sktime estimators, on the command line's networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .models import TPGN, TSM2, Scan
from .sktime_base import NetworkForecaster
from .sktime_panel import ScanClassifier, ScanRegressor
from .task import ForecastTask

__all__ = ["ScanClassifier", "ScanForecaster", "ScanRegressor", "TPGNForecaster", "TSM2Forecaster"]

DEFAULT_QUANTILES = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)


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


class TSM2Forecaster(ScanForecaster):
    """TSM2: any registered mixer along time and, in both directions, across the variables (Behrouz et al., 2024).

    Several columns of ``y`` are forecast together and see each other. Trained on all windows of the series; one pass
    forecasts the whole horizon. Quantiles, exogenous data and missing values as in :class:`ScanForecaster`.

    Its parameters are those of :class:`ScanForecaster`; ``depth`` counts layers, each with a mixer along time and one
    across the variables.

    Examples
    --------
    >>> from scanweave.timeseries.sktime import TSM2Forecaster
    >>> from sktime.datasets import load_longley
    >>> _, y = load_longley()
    >>> forecaster = TSM2Forecaster(mixer="mingru", lookback=4, max_epochs=2)
    >>> forecaster.fit(y, fh=[1, 2])
    TSM2Forecaster(lookback=4, max_epochs=2, mixer='mingru')
    >>> y_pred = forecaster.predict()
    """

    def _task(self) -> ForecastTask:
        return TSM2(
            mixer=self.mixer, depth=self.depth, width=self.width, patch=self.patch, norm=self.norm, **self._training
        )
