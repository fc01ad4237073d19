"""The classifier and the regressor of whole series as sktime estimators."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping
from sktime.classification.base import BaseClassifier
from sktime.regression.base import BaseRegressor
from torch import Tensor
from torch.utils.data import Subset

from ..core.classification import held_out
from ..core.errors import ConfigError
from ..core.sampler import evaluation_loader, train_loader
from .classifiers.panel import PanelDataset, collate, fit_scaler
from .classifiers.task import PanelTask, ScanClassification, ScanRegression
from .training import seeded, train

_TAGS: dict[str, Any] = {
    "authors": ["scanweave developers"],
    "maintainers": ["scanweave developers"],
    "python_dependencies": ["torch", "lightning"],
    "X_inner_mtype": "df-list",
    "capability:multivariate": True,
    "capability:unequal_length": True,
    "capability:missing_values": True,
    "capability:categorical_in_X": False,
    "capability:random_state": True,
    "property:randomness": "derandomized",
}


class _PanelEstimator:
    """What classifier and regressor share: one training on padded batches, and batches to predict."""

    def __init__(
        self,
        mixer: str = "mamba",
        depth: int = 2,
        width: int = 64,
        patch: int = 16,
        stride: int = 4,
        bidirectional: bool = True,
        norm: bool = False,
        dropout: float = 0.1,
        max_epochs: int = 50,
        min_steps: int = 500,
        batch_size: int = 16,
        lr: float = 1e-3,
        weight_decay: float = 0.01,
        validation: float = 0.0,
        patience: int | None = None,
        accelerator: str = "cpu",
        random_state: int | None = 0,
    ) -> None:
        self.mixer = mixer
        self.depth = depth
        self.width = width
        self.patch = patch
        self.stride = stride
        self.bidirectional = bidirectional
        self.norm = norm
        self.dropout = dropout
        self.max_epochs = max_epochs
        self.min_steps = min_steps
        self.batch_size = batch_size
        self.lr = lr
        self.weight_decay = weight_decay
        self.validation = validation
        self.patience = patience
        self.accelerator = accelerator
        self.random_state = random_state
        super().__init__()

    @property
    def _options(self) -> dict[str, Any]:
        names = ("mixer", "depth", "width", "patch", "stride", "bidirectional", "norm", "dropout", "lr", "weight_decay")
        return {name: getattr(self, name) for name in names}

    def _train(self, X: list[pd.DataFrame], targets: Tensor, classes: np.ndarray | None, task: PanelTask) -> None:
        """Fit the scaler and the task, and keep the network."""
        series = _arrays(X)
        self.scaler_ = fit_scaler(series, [str(name) for name in X[0].columns], type(self).__name__)
        data = PanelDataset(series, self.scaler_, targets)
        with seeded(self.random_state):
            task.build()
            seed = int(torch.randint(2**31, ()))
            rest, held = np.arange(len(series)), np.arange(0)
            if self.validation:
                labels = np.zeros(len(series), dtype=np.int64) if classes is None else classes
                rest, held = held_out(labels, self.validation, seed)
            batches = -(-len(rest) // self.batch_size)
            epochs = max(self.max_epochs, -(-self.min_steps // batches))
            training = train_loader(
                Subset(data, rest.tolist()), self.batch_size, seed=seed, drop_last=False, collate_fn=collate
            )
            validation = evaluation_loader(Subset(data, held.tolist()), 64, collate_fn=collate) if len(held) else None
            train(
                task,
                training,
                validation,
                max_epochs=epochs,
                accelerator=self.accelerator,
                callbacks=self._callbacks(),
                gradient_clip=1.0,
            )
        self.network_ = task.model.eval()

    def _callbacks(self) -> tuple[Callback, ...]:
        if self.patience is None:
            return ()
        if not self.validation:
            raise ConfigError(
                f"{type(self).__name__}: patience is {self.patience}, but validation is 0: early stopping watches "
                "series that are held out; set validation, such as 0.2, or patience=None"
            )
        return (EarlyStopping("val/loss", patience=self.patience),)

    @torch.no_grad()
    def _outputs(self, X: list[pd.DataFrame]) -> Tensor:
        """Return the network's outputs (N, O), float64."""
        data = PanelDataset(_arrays(X), self.scaler_)
        found = [
            self.network_(batch["series"], batch.get("lengths"), batch.get("observed"))
            for batch in evaluation_loader(data, 64, collate_fn=collate)
        ]
        return torch.cat(found).double()


def _arrays(X: list[pd.DataFrame]) -> list[np.ndarray]:
    return [frame.to_numpy(dtype=np.float64) for frame in X]


class ScanClassifier(_PanelEstimator, BaseClassifier):
    """Any scanweave mixer over whole series, pooled over time, with one class for each series.

    Each token reads a patch of steps; the tokens are mixed in both directions, and their mean, their largest and
    their last give the class. Series may have several channels, different lengths and missing values.

    Parameters
    ----------
    mixer : str, default="mamba"
        A mixer's name; ``scanweave models`` lists them.
    depth : int, default=2
        Blocks.
    width : int, default=64
        Features of a token.
    patch : int, default=16
        Steps that a token reads.
    stride : int, default=4
        Steps from one token to the next.
    bidirectional : bool, default=True
        Mix in both directions.
    norm : bool, default=False
        Normalise each channel of each series; else all are scaled by the training series alike.
    dropout : float, default=0.1
        Rate inside the feed-forward layers and before the head.
    max_epochs : int, default=50
        Passes over the training series.
    min_steps : int, default=500
        Least number of optimiser steps: few series are passed more often.
    batch_size : int, default=16
        Series in an optimiser step.
    lr : float, default=1e-3
        Learning rate of AdamW, falling to 0 along a cosine.
    weight_decay : float, default=0.01
        Weight decay of AdamW.
    validation : float, default=0.0
        Share of the series of each class that choose the epoch; 0 trains on all of them to the end.
    patience : int or None, default=None
        Epochs without a better validation loss after which training stops; needs ``validation``.
    accelerator : str, default="cpu"
        As Lightning's Trainer takes it: "cpu", "gpu", "auto".
    random_state : int or None, default=0
        Seed of weights and order; None for another one at each fit.

    Examples
    --------
    >>> from scanweave.timeseries.sktime import ScanClassifier
    >>> from sktime.datasets import load_unit_test
    >>> X, y = load_unit_test(split="train")
    >>> classifier = ScanClassifier(mixer="mingru", max_epochs=2, min_steps=0)
    >>> classifier.fit(X, y)
    ScanClassifier(max_epochs=2, min_steps=0, mixer='mingru')
    >>> y_pred = classifier.predict(X)
    >>> y_proba = classifier.predict_proba(X)
    """

    _tags: ClassVar = {**_TAGS, "capability:predict_proba": True}

    def _fit(self, X: list[pd.DataFrame], y: np.ndarray) -> ScanClassifier:
        numbers = np.array([self._class_dictionary[label] for label in y])
        task = ScanClassification(**self._options)
        task.set_context(
            {
                "channels": X[0].shape[1],
                "classes": [str(label) for label in self.classes_],
                "counts": np.bincount(numbers).tolist(),
            }
        )
        self._train(X, torch.from_numpy(numbers), numbers, task)
        return self

    def _predict_proba(self, X: list[pd.DataFrame]) -> np.ndarray:
        return self._outputs(X).softmax(-1).numpy()

    def _predict(self, X: list[pd.DataFrame]) -> np.ndarray:
        return self.classes_[self._outputs(X).argmax(-1).numpy()]

    @classmethod
    def get_test_params(cls, parameter_set: str = "default") -> list[dict[str, Any]]:
        """Return parameters that train for an instant."""
        return _test_parameters()


class ScanRegressor(_PanelEstimator, BaseRegressor):
    """Any scanweave mixer over whole series, pooled over time, with one value for each series.

    The network of :class:`ScanClassifier`, trained on the squared error of the standardised target.

    Parameters
    ----------
    mixer : str, default="mamba"
        A mixer's name; ``scanweave models`` lists them.
    depth : int, default=2
        Blocks.
    width : int, default=64
        Features of a token.
    patch : int, default=16
        Steps that a token reads.
    stride : int, default=4
        Steps from one token to the next.
    bidirectional : bool, default=True
        Mix in both directions.
    norm : bool, default=False
        Normalise each channel of each series; else all are scaled by the training series alike.
    dropout : float, default=0.1
        Rate inside the feed-forward layers and before the head.
    max_epochs : int, default=50
        Passes over the training series.
    min_steps : int, default=500
        Least number of optimiser steps: few series are passed more often.
    batch_size : int, default=16
        Series in an optimiser step.
    lr : float, default=1e-3
        Learning rate of AdamW, falling to 0 along a cosine.
    weight_decay : float, default=0.01
        Weight decay of AdamW.
    validation : float, default=0.0
        Share of the series that choose the epoch; 0 trains on all of them to the end.
    patience : int or None, default=None
        Epochs without a better validation loss after which training stops; needs ``validation``.
    accelerator : str, default="cpu"
        As Lightning's Trainer takes it: "cpu", "gpu", "auto".
    random_state : int or None, default=0
        Seed of weights and order; None for another one at each fit.

    Examples
    --------
    >>> from scanweave.timeseries.sktime import ScanRegressor
    >>> from sktime.datasets import load_unit_test
    >>> X, y = load_unit_test(split="train")
    >>> regressor = ScanRegressor(mixer="mingru", max_epochs=2, min_steps=0)
    >>> regressor.fit(X, y.astype(float))
    ScanRegressor(max_epochs=2, min_steps=0, mixer='mingru')
    >>> y_pred = regressor.predict(X)
    """

    _tags: ClassVar = _TAGS

    def _fit(self, X: list[pd.DataFrame], y: np.ndarray) -> ScanRegressor:
        values = np.asarray(y, dtype=np.float64)
        self._mean, self._deviation = values.mean(), values.std() or 1.0
        targets = torch.from_numpy(((values - self._mean) / self._deviation).astype(np.float32))
        self._train(X, targets, None, ScanRegression(channels=X[0].shape[1], **self._options))
        return self

    def _predict(self, X: list[pd.DataFrame]) -> np.ndarray:
        return self._outputs(X).squeeze(-1).numpy() * self._deviation + self._mean

    @classmethod
    def get_test_params(cls, parameter_set: str = "default") -> list[dict[str, Any]]:
        """Return parameters that train for an instant."""
        return _test_parameters()


def _test_parameters() -> list[dict[str, Any]]:
    small = {"depth": 1, "width": 4, "max_epochs": 1, "min_steps": 0, "batch_size": 64}
    return [
        {**small, "mixer": "mingru", "patch": 4, "stride": 2},
        {**small, "mixer": "lru", "patch": 1, "stride": 1, "bidirectional": False, "norm": True, "validation": 0.3},
    ]
