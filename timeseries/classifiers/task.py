"""Classification and regression of whole series under the shared training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics import MeanAbsoluteError, MeanSquaredError, MetricCollection
from torchmetrics.classification import MulticlassConfusionMatrix

from ...core.classification import balanced_weights, classification_metrics
from ...core.errors import ConfigError
from ...core.optimizers import ScheduleName
from ...core.plots import confusion_figure
from ...core.storage import atomic_file
from ...core.task import Stage, Task
from .module import PanelData
from .network import PanelNetwork

ClassWeights = Literal["none", "balanced"]


class PanelTask(Task):
    """Base of the tasks on whole series: a :class:`PanelNetwork` and how it is trained.

    Args:
        mixer: A registered mixer's name; ``scanweave models`` lists them.
        depth: Blocks.
        width: Features of a token.
        patch: Steps that a token reads.
        stride: Steps from one token to the next.
        bidirectional: Mix in both directions.
        norm: Normalise each channel of each series.
        mlp_ratio: Hidden features of the feed-forward layers in multiples of width; 0 leaves them out.
        dropout: Rate inside the feed-forward layers and before the head.
        lr: Learning rate.
        weight_decay: Decay of matrices.
        schedule: Learning rate over epochs.
        options: The shared training's other arguments.
    """

    model: PanelNetwork

    def __init__(
        self,
        mixer: str = "mamba",
        depth: int = 2,
        width: int = 64,
        patch: int = 16,
        stride: int = 4,
        bidirectional: bool = True,
        norm: bool = False,
        mlp_ratio: float = 2.0,
        dropout: float = 0.1,
        lr: float = 1e-3,
        weight_decay: float = 0.01,
        schedule: ScheduleName = "cosine",
        **options: Any,
    ) -> None:
        super().__init__(lr=lr, weight_decay=weight_decay, schedule=schedule, **options)
        self.mixer, self.depth, self.width, self.patch, self.stride = mixer, depth, width, patch, stride
        self.bidirectional, self.norm, self.mlp_ratio, self.dropout = bidirectional, norm, mlp_ratio, dropout

    def network(self, channels: int, outputs: int) -> PanelNetwork:
        """Return the network for data of these sizes."""
        return PanelNetwork(
            channels,
            outputs,
            mixer=self.mixer,
            depth=self.depth,
            width=self.width,
            patch=self.patch,
            stride=self.stride,
            bidirectional=self.bidirectional,
            norm=self.norm,
            mlp_ratio=self.mlp_ratio,
            dropout=self.dropout,
        )

    def outputs(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the network's outputs (B, O) for a batch of :func:`~scanweave.timeseries.classifiers.collate`."""
        return self.model(batch["series"], batch.get("lengths"), batch.get("observed"))

    def describe_batch(self, batch: Any) -> str:
        return f"series {batch['index'].tolist()}"


class ScanClassification(PanelTask):
    """Any registered mixer over whole series, with one class for each.

    Trains on cross-entropy. Reports accuracy, macro F1, macro area under the ROC curve, and the calibration error of
    the most likely class.

    Args:
        label_smoothing: Share of each target spread over all classes.
        class_weights: ``balanced`` weighs each class in the loss by the inverse of its share of the training series.
        options: The arguments of :class:`PanelTask`.
    """

    def __init__(self, label_smoothing: float = 0.0, class_weights: ClassWeights = "none", **options: Any) -> None:
        super().__init__(**options)
        self.label_smoothing, self.class_weights = label_smoothing, class_weights
        self._context: dict[str, Any] = {}

    def context(self) -> dict[str, Any]:
        if not self._context:
            self._context = self._data.context()
        return self._context

    def set_context(self, context: Mapping[str, Any]) -> None:
        """Take ``channels`` (D), ``classes`` (their names) and ``counts`` (training series of each)."""
        self._context = dict(context)

    def configure_models(self) -> None:
        self.model = self.network(self.context()["channels"], len(self.context()["classes"]))

    def configure_losses(self) -> None:
        weight = balanced_weights(self.context()["counts"]) if self.class_weights == "balanced" else None
        self.criterion = nn.CrossEntropyLoss(weight, label_smoothing=self.label_smoothing)

    def configure_metrics(self) -> None:
        classes = len(self.context()["classes"])
        self.set_metrics(classification_metrics(classes))
        self.train_metrics = MetricCollection({}, prefix="train/")
        self.confusion = MulticlassConfusionMatrix(classes)

    def compute(self, batch: Any, stage: Stage) -> Tensor:
        logits, target = self.outputs(batch), batch["target"]
        if stage != "train":
            probabilities = logits.detach().softmax(-1)
            self.metrics(stage).update(probabilities, target)
            if stage == "test":
                self.confusion.update(probabilities, target)
        return self.criterion(logits, target)

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        return {"index": batch["index"], "probabilities": self.outputs(batch).softmax(-1)}

    def save_predictions(self, outputs: list[Any], folder: Path) -> Path:
        """Write ``predictions.csv``: each series' most likely label, and the probability of each class."""
        index, probabilities = (torch.cat([output[name] for output in outputs]) for name in ("index", "probabilities"))
        table = self._data.prediction_frame(index.cpu().numpy(), probabilities.double().cpu().numpy())
        path = folder / "predictions.csv"
        with atomic_file(path, "w") as file:
            table.to_csv(file, index=False)
        return path

    def draw(self, folder: Path) -> list[Path]:
        if not self.confusion.update_called:
            return []
        matrix = self.confusion.compute().cpu().numpy().astype(np.int64)
        return [confusion_figure(matrix, self.context()["classes"], folder / "confusion.png")]

    def on_test_start(self) -> None:
        self.confusion.reset()

    @property
    def _data(self) -> PanelData:
        data = None if self._trainer is None else getattr(self.trainer, "datamodule", None)
        if not isinstance(data, PanelData):
            raise ConfigError(f"{type(self).__name__} reads classes and sizes from a PanelData module; pass one")
        return data


class ScanRegression(PanelTask):
    """Any registered mixer over whole series, with one value for each; trains on squared error.

    Args:
        channels: D, values at each step.
        options: The arguments of :class:`PanelTask`.
    """

    def __init__(self, channels: int = 1, **options: Any) -> None:
        super().__init__(**options)
        self.channels = channels

    def configure_models(self) -> None:
        self.model = self.network(self.channels, 1)

    def configure_losses(self) -> None:
        self.criterion = nn.MSELoss()

    def configure_metrics(self) -> None:
        self.set_metrics({"mse": MeanSquaredError(), "mae": MeanAbsoluteError()})
        self.train_metrics = MetricCollection({}, prefix="train/")

    def compute(self, batch: Any, stage: Stage) -> Tensor:
        prediction = self.outputs(batch).squeeze(-1)
        if stage != "train":
            self.metrics(stage).update(prediction.detach(), batch["target"])
        return self.criterion(prediction, batch["target"])
