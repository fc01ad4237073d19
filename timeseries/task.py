"""ForecastTask: any forecasting network under the shared training, with masked losses and calibrated quantiles."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchmetrics import MeanAbsoluteError, MeanMetric, MeanSquaredError, MetricCollection

from ..core.errors import ConfigError
from ..core.optimizers import OptimizerName, ScheduleName
from ..core.storage import atomic_file
from ..core.task import Stage, Task
from .data.module import ForecastData
from .data.spec import ForecastSpec
from .figures import draw_forecasts
from .forecasters.base import Forecaster
from .losses import LossName, MaskedLoss
from .metrics import Coverage, Residuals
from .quantiles import ConformalOffsets, point_index

_FIGURES = 4
_KEPT = ("series", "start", "past", "past_mask", "future", "future_mask")
# Below this many parameters, more threads make a training step slower.
_SMALL_NETWORK = 200_000


class ForecastTask(Task):
    """Base of the forecasting tasks; a subclass builds its network in :meth:`configure_forecaster`.

    With quantiles, the validation windows calibrate them at the end of each validation (see
    :class:`~scanweave.timeseries.quantiles.ConformalOffsets`), so that each checkpoint holds the shifts of its own
    weights; ``test`` and ``predict`` apply them.

    Args:
        loss: ``mse``, ``mae`` or ``pinball``; by default ``pinball`` with quantiles and ``mse`` without.
        quantiles: Levels in (0, 1) to forecast, rising; the level nearest 1/2 is the point forecast.
        calibrate: Whether quantiles are calibrated on the validation windows.
        lr: Learning rate.
        optimizer: ``"adam"`` or ``"adamw"``.
        schedule: Learning rate over epochs.
        lr_decay: Factor per epoch of the exponential schedule.
        options: The shared training's other arguments.
    """

    model: Forecaster

    def __init__(
        self,
        loss: LossName | None = None,
        quantiles: list[float] | None = None,
        calibrate: bool = True,
        lr: float = 1e-3,
        optimizer: OptimizerName = "adam",
        schedule: ScheduleName = "exponential",
        lr_decay: float = 0.9,
        **options: Any,
    ) -> None:
        super().__init__(lr=lr, optimizer=optimizer, schedule=schedule, lr_decay=lr_decay, **options)
        self.loss: LossName = loss or ("pinball" if quantiles else "mse")
        self.quantiles = tuple(quantiles or ())
        self.calibrate = calibrate
        self._spec: ForecastSpec | None = None
        self._shown: list[dict[str, Tensor]] = []
        self._is_shown = False
        self._threads: int | None = None

    def configure_forecaster(self, spec: ForecastSpec) -> Forecaster:
        """Return the network for data of these sizes."""
        raise NotImplementedError(f"{type(self).__name__} must implement configure_forecaster(spec)")

    @property
    def spec(self) -> ForecastSpec:
        """Sizes of the data: a checkpoint's, else the data module's."""
        if self._spec is None:
            self._spec = self._data.spec
        return self._spec

    def context(self) -> dict[str, Any]:
        return {"spec": self.spec.to_dict()}

    def set_context(self, context: Mapping[str, Any]) -> None:
        self._spec = ForecastSpec.from_dict(context["spec"])

    def configure_models(self) -> None:
        self.model = self.configure_forecaster(self.spec)
        if self.quantiles:
            self.offsets = ConformalOffsets(self.spec.horizon, self.spec.channels, self.quantiles)
            self.residuals = Residuals()

    def configure_losses(self) -> None:
        self.criterion = MaskedLoss(self.loss, self.quantiles)

    def configure_metrics(self) -> None:
        metrics = {"mse": MeanSquaredError(), "mae": MeanAbsoluteError()}
        self.set_metrics({**metrics, "coverage": Coverage()} if self.quantiles else metrics)
        # Training reports its loss; metrics would cost a small network a share of its step that shows.
        self.train_metrics = MetricCollection({}, prefix="train/")
        if self._has_data:
            self.test_metrics.add_metrics({"mae_original": MeanMetric()})

    def compute(self, batch: Any, stage: Stage) -> Tensor:
        forecast, truth, mask = self.model(batch), batch["future"], batch.get("future_mask")
        loss = self.criterion(forecast, truth, mask)
        if stage == "train":
            return loss
        forecast = forecast.detach()
        if self.quantiles and stage == "val" and self.calibrate:
            self.residuals.update(forecast, truth, mask)
        if self.quantiles and stage == "test":
            forecast = self.offsets(forecast)
        values = {"preds": self.point(forecast), "target": truth}
        if self.quantiles:
            values["quantiles"] = forecast
        if stage == "test" and self._has_data:
            values["value"] = self._original_error(batch, values["preds"])
            self._keep_shown(batch, forecast)
        keep = torch.ones_like(truth, dtype=torch.bool) if mask is None else mask
        values = {name: value[keep] for name, value in values.items()}
        self.metrics(stage).update(**values)
        return loss

    def forecast(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the calibrated forecast (B, H, D) or (B, H, D, Q), scaled."""
        forecast = self.model(batch)
        return self.offsets(forecast) if self.quantiles else forecast

    def point(self, forecast: Tensor) -> Tensor:
        """Return the point forecast (B, H, D)."""
        return forecast[..., point_index(self.quantiles)] if self.quantiles else forecast

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        return {"forecast": self.forecast(batch), **{name: batch[name] for name in _KEPT if name in batch}}

    def save_predictions(self, outputs: list[Any], folder: Path) -> Path:
        """Write ``predictions.csv`` in original units, and pictures of the first series."""
        data = self._data
        whole = {name: torch.cat([output[name] for output in outputs]) for name in outputs[0]}
        table = data.forecast_frame(whole["forecast"], whole["series"], whole["start"], self.quantiles)
        path = folder / "predictions.csv"
        with atomic_file(path, "w") as file:
            table.to_csv(file, index=False)
        draw_forecasts(data, [whole], self.quantiles, folder / "figures", "prediction")
        return path

    def draw(self, folder: Path) -> list[Path]:
        return draw_forecasts(self._data, self._shown, self.quantiles, folder) if self._shown else []

    def describe_batch(self, batch: Any) -> str:
        series, start = (batch[name].tolist() for name in ("series", "start"))
        return "windows (series, first row) " + ", ".join(f"({s}, {t})" for s, t in zip(series, start, strict=True))

    # --- hooks ----------------------------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        small = sum(parameter.numel() for parameter in self.parameters()) < _SMALL_NETWORK
        if small and self.device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
            self._threads = torch.get_num_threads()
            torch.set_num_threads(1)

    def on_fit_end(self) -> None:
        if self._threads is not None:
            torch.set_num_threads(self._threads)
            self._threads = None

    def on_validation_epoch_start(self) -> None:
        if self.quantiles:
            self.residuals.reset()

    def on_validation_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        # Before the epoch's end, where an average of the weights would already have been swapped out again.
        last = batch_idx + 1 == sum(self.trainer.num_val_batches)
        training = self.trainer.state.fn == "fit" and not self.trainer.sanity_checking
        if self.quantiles and self.calibrate and training and last:
            self.offsets.calibrate(*self.residuals.compute())

    def on_test_start(self) -> None:
        self._shown = []

    def on_test_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        batches = int(self.trainer.num_test_batches[0])
        self._is_shown = batch_idx % max(1, -(-batches // _FIGURES)) == 0

    # --- original units -------------------------------------------------------------------------------------------

    @property
    def _has_data(self) -> bool:
        return self._trainer is not None and isinstance(getattr(self.trainer, "datamodule", None), ForecastData)

    @property
    def _data(self) -> ForecastData:
        if not self._has_data:
            raise ConfigError(f"{type(self).__name__} reads sizes and units from a ForecastData module; pass one")
        return self.trainer.datamodule  # type: ignore[attr-defined]

    def _original_error(self, batch: Mapping[str, Tensor], point: Tensor) -> Tensor:
        info, series = self._data.frame, batch["series"].cpu().numpy()
        error = abs(info.original(point, series) - info.original(batch["future"], series))
        return torch.from_numpy(error).to(point.device, torch.float32)

    def _keep_shown(self, batch: Mapping[str, Tensor], forecast: Tensor) -> None:
        if self._is_shown:
            kept = {name: batch[name][:1].cpu() for name in _KEPT if name in batch}
            self._shown.append({"forecast": forecast[:1].cpu(), **kept})
