"""The base of every task: three hooks fill it, Lightning's Trainer drives it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging
from lightning.pytorch.utilities.data import extract_batch_size
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from .errors import ConfigError
from .metrics import SampleMean
from .optimizers import OptimizerName, ScheduleName, create_optimizer, create_schedule, parameter_groups
from .storage import require_same_layout

Stage = Literal["train", "val", "test"]


class NonFiniteError(ArithmeticError):
    """A loss or gradient became infinite or not a number; the message names the step and the batch."""


class Ema(EMAWeightAveraging):
    """Exponential moving average of the weights, used by validation, the checkpoints and everything after training.

    Args:
        decay: d in average <- d average + (1 - d) weights, applied after each optimiser step.
    """

    def __init__(self, decay: float) -> None:
        if not 0.0 < decay < 1.0:
            raise ConfigError(f"ema is {decay}; a decay lies between 0 and 1, and 0 turns it off")
        super().__init__(decay=decay)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit":
            pl_module.setup(stage)  # the copy needs the network, which is built after callbacks are set up
            super().setup(trainer, pl_module, stage)

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict) -> None:
        # Outside fit, `state_dict` is the average already; Lightning would put the raw weights back.
        if self._average_model is not None:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)


class Task(pl.LightningModule):
    """Network, losses and metrics of one kind of problem.

    A task fills three hooks (``configure_models``, ``configure_losses``, ``configure_metrics``) and ``compute``.
    Hyper-parameters are plain values, so that a checkpoint holds no objects.

    Args:
        lr: Learning rate.
        weight_decay: Decay of matrices; see :func:`parameter_groups` for what is exempt.
        optimizer: ``"adam"`` or ``"adamw"``.
        schedule: Learning rate over epochs: ``"constant"``, ``"cosine"`` (to 0 at ``max_epochs``) or
            ``"exponential"``.
        lr_decay: Factor per epoch of the exponential schedule.
        warmup_epochs: Epochs of linear warm-up.
        ema: Decay of the weights' moving average; 0 for none.
        check_finite: Whether a loss or gradient that is not finite stops training.

    Raises:
        TypeError: A hyper-parameter of the subclass is not a plain value.
    """

    monitor: str = "val/loss"
    monitor_mode: Literal["min", "max"] = "min"

    model: nn.Module
    train_metrics: MetricCollection
    val_metrics: MetricCollection
    test_metrics: MetricCollection

    def __init__(
        self,
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        optimizer: OptimizerName = "adamw",
        schedule: ScheduleName = "constant",
        lr_decay: float = 0.9,
        warmup_epochs: int = 0,
        ema: float = 0.0,
        check_finite: bool = True,
    ) -> None:
        super().__init__()
        self.lr = lr
        self.weight_decay = weight_decay
        self.optimizer = optimizer
        self.schedule = schedule
        self.lr_decay = lr_decay
        self.warmup_epochs = warmup_epochs
        self.ema = ema
        self.check_finite = check_finite
        self.save_hyperparameters()
        for name, value in self.hparams.items():
            _require_plain(name, value)
        self._is_built = False
        self._batch_name = ""

    # --- what a task fills in -------------------------------------------------------------------------------------

    def configure_models(self) -> None:
        """Set ``self.model`` from the hyper-parameters and, where it depends on the data, :meth:`context`."""
        raise NotImplementedError(f"{type(self).__name__} must implement configure_models()")

    def configure_losses(self) -> None:
        """Set the loss functions."""

    def configure_metrics(self) -> None:
        """Call :meth:`set_metrics` with what validation and test report."""
        self.set_metrics({})

    def compute(self, batch: Any, stage: Stage) -> Tensor:
        """Return a batch's mean loss (a scalar), and update ``self.metrics(stage)``."""
        raise NotImplementedError(f"{type(self).__name__} must implement compute(batch, stage)")

    def context(self) -> dict[str, Any]:
        """Return the plain values beyond hyper-parameters that ``configure_models`` needs, such as channel counts."""
        return {}

    def set_context(self, context: Mapping[str, Any]) -> None:
        """Take values returned by :meth:`context`, before :meth:`build`, in place of a data module."""
        if context:
            raise ConfigError(f"{type(self).__name__} takes no context, but was given {', '.join(context)}")

    def save_predictions(self, outputs: list[Any], folder: Path) -> Path | None:
        """Write what ``predict_step`` returned for all batches, in the dataset's order.

        Args:
            outputs: One element per batch.
            folder: The run folder.

        Returns:
            The file written, or None where the task writes none.
        """
        return None

    def draw(self, folder: Path) -> list[Path]:
        """Draw the figures of the last test into a folder.

        Args:
            folder: The run's ``figures`` folder.

        Returns:
            The files written.
        """
        return []

    def describe_batch(self, batch: Any) -> str:
        """Name a batch's samples for an error message; by default from its ``index`` entry."""
        index = batch.get("index") if isinstance(batch, Mapping) else None
        return f"samples {index.tolist()}" if isinstance(index, Tensor) else ""

    def batch_size(self, batch: Any) -> int:
        """Return how many samples a batch has; by default the first size of its tensors."""
        return extract_batch_size(batch)

    # --- what the tasks share -------------------------------------------------------------------------------------

    def build(self) -> None:
        """Build network, losses and metrics; a second call does nothing."""
        if not self._is_built:
            self._is_built = True
            self.configure_models()
            self.configure_losses()
            self.configure_metrics()
            for stage in ("train", "val", "test"):
                self.add_module(f"{stage}_loss", SampleMean())

    def set_metrics(self, metrics: Mapping[str, Metric]) -> None:
        """Give each stage its own copy of some metrics, named ``stage/name``."""
        collection = MetricCollection(dict(metrics))
        self.train_metrics = collection.clone(prefix="train/")
        self.val_metrics = collection.clone(prefix="val/")
        self.test_metrics = collection.clone(prefix="test/")

    def metrics(self, stage: Stage) -> MetricCollection:
        """Return a stage's metrics."""
        return getattr(self, f"{stage}_metrics")

    def setup(self, stage: str) -> None:
        self.build()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self._batch_name = ", ".join(filter(None, (f"batch {batch_idx}", self.describe_batch(batch))))
        loss = self._step(batch, "train")
        if self.check_finite and not torch.isfinite(loss.detach()):
            raise self._non_finite("the loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._step(batch, "val")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self._step(batch, "test")

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return self(batch)

    def _step(self, batch: Any, stage: Stage) -> Tensor:
        loss = self.compute(batch, stage)
        size = self.batch_size(batch)
        mean: SampleMean = getattr(self, f"{stage}_loss")
        mean.update(loss, size)
        self.log(f"{stage}/loss", mean, on_step=False, on_epoch=True, batch_size=size, prog_bar=stage != "test")
        collection = self.metrics(stage)
        if len(collection):
            self.log_dict(collection, on_step=False, on_epoch=True, batch_size=size, prog_bar=stage == "val")
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        # With float16 a loss scale probes for overflow: its infinite gradients are skipped by design.
        if not self.check_finite or getattr(self.trainer.precision_plugin, "scaler", None) is not None:
            return
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if not torch.isfinite(norm):
            raise self._non_finite("the gradient's norm", norm)

    def on_train_epoch_end(self) -> None:
        self.log("lr", self.trainer.optimizers[0].param_groups[0]["lr"], sync_dist=True)

    def _non_finite(self, what: str, value: Tensor) -> NonFiniteError:
        return NonFiniteError(
            f"{what} is {float(value.detach())} at step {self.global_step} (epoch {self.current_epoch}, "
            f"{self._batch_name}); training stopped, and the last checkpoint is from before it. "
            "Look at these samples, lower lr, or clip gradients (trainer.gradient_clip_val)"
        )

    def optimizer_groups(self) -> list[dict[str, Any]]:
        """Return the trainable parameters in groups, each with its decay and, where it has one of its own, its rate."""
        return parameter_groups(self, self.weight_decay)

    def configure_optimizers(self) -> Any:
        optimizer = create_optimizer(self.optimizer, self.optimizer_groups(), self.lr)
        schedule = create_schedule(
            self.schedule,
            optimizer,
            epochs=self.trainer.max_epochs,
            warmup_epochs=self.warmup_epochs,
            lr_decay=self.lr_decay,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "epoch"}}

    def configure_callbacks(self) -> list[Callback]:
        return [Ema(self.ema)] if self.ema else []

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["context"] = self.context()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if not self._is_built:  # `load_from_checkpoint` calls neither the Trainer nor `setup`
            self.set_context(checkpoint.get("context", {}))
            self.build()
        require_same_layout(checkpoint["state_dict"], self.state_dict(), "the checkpoint")


def _require_plain(name: str, value: Any) -> None:
    """Refuse hyper-parameters that a checkpoint could hold only as pickled objects."""
    if isinstance(value, dict):
        for key, item in value.items():
            _require_plain(f"{name}.{key}", item)
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            _require_plain(f"{name}[{i}]", item)
    elif value is not None and type(value) not in (bool, int, float, str):
        raise TypeError(
            f"hyper-parameter {name} is a {type(value).__name__}; only None, bool, int, float, str, and lists and "
            "dicts of these are kept in a checkpoint"
        )
