"""Recognition of videos under the shared training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassConfusionMatrix

from ...core.classification import balanced_weights, classification_metrics
from ...core.errors import ConfigError, DataError
from ...core.optimizers import ScheduleName
from ...core.plots import confusion_figure
from ...core.task import Stage, Task
from ..classification.report import class_report
from .dataset import ClipInput
from .module import VideoData
from .motion import CHANNELS
from .report import Timeline, draw_timelines, write_scores, write_verdicts
from .streaming import Score, score_over_time

ClassWeights = Literal["none", "balanced"]
_MOST_DRAWN = 100


class VideoClassification(Task):
    """Videos in classes; a subclass names the network.

    Where the data have a second stream, a network of the same kind sees it, and the two networks' probabilities are
    averaged (late fusion). Reports accuracy, macro F1, macro area under the ROC curve and the calibration error;
    after a test, a table by class and the confusion matrix. ``predict`` reads videos frame by frame and writes the
    scores over time, as a table and a picture.

    Args:
        motion_weight: Share of the second stream's probabilities in the average.
        label_smoothing: Share of each target spread over all classes.
        class_weights: ``balanced`` weighs each class in the loss by the inverse of its share of the training videos.
        lr: Learning rate.
        weight_decay: Decay of matrices.
        schedule: Learning rate over epochs.
        options: The shared training's other arguments.

    Source:
        Simonyan and Zisserman, Two-stream convolutional networks for action recognition in videos (2014), section 2,
        for the second stream.
    """

    takes_length: ClassVar[bool] = False
    """Whether the network reads clips of different lengths."""

    def __init__(
        self,
        motion_weight: float = 0.5,
        label_smoothing: float = 0.0,
        class_weights: ClassWeights = "none",
        lr: float = 1e-3,
        weight_decay: float = 0.05,
        schedule: ScheduleName = "cosine",
        **options: Any,
    ) -> None:
        super().__init__(lr=lr, weight_decay=weight_decay, schedule=schedule, **options)
        self.motion_weight, self.label_smoothing, self.class_weights = motion_weight, label_smoothing, class_weights
        self._context: dict[str, Any] = {}
        self.is_trained = False
        self._counts: np.ndarray | None = None

    def configure_network(self, classes: int, inputs: ClipInput, in_chans: int) -> nn.Module:
        """Return a new network from clips (B, T, in_chans, S, S) to logits (B, classes)."""
        raise NotImplementedError(f"{type(self).__name__} must implement configure_network(classes, inputs, in_chans)")

    # --- context and network --------------------------------------------------------------------------------------

    def context(self) -> dict[str, Any]:
        if not self._context:
            self._context = self._data.context()
        return self._context

    def set_context(self, context: Mapping[str, Any]) -> None:
        """Take ``classes`` (names), ``counts`` (training videos of each) and ``inputs`` of a trained model."""
        self._context, self.is_trained = dict(context), True

    @property
    def classes(self) -> list[str]:
        """The classes' names."""
        return self.context()["classes"]

    @property
    def inputs(self) -> ClipInput:
        """How clips are chosen and prepared."""
        return ClipInput(**self.context()["inputs"])

    def configure_models(self) -> None:
        if not 0.0 <= self.motion_weight <= 1.0:
            raise ConfigError(f"--model.motion_weight is {self.motion_weight}; expected a share from 0 to 1")
        inputs = self.inputs
        if inputs.sampling == "whole" and not self.takes_length:
            raise ConfigError(
                f"{type(self).__name__} sees clips of one length; expected --data.sampling segments or dense, or "
                "--model LRCN"
            )
        chans = {"video": 3, "motion": CHANNELS[inputs.motion]}
        self.model = nn.ModuleDict(
            {name: self.configure_network(len(self.classes), inputs, n) for name, n in chans.items() if n}
        )

    def configure_losses(self) -> None:
        weight = balanced_weights(self.context()["counts"]) if self.class_weights == "balanced" else None
        self.criterion = nn.CrossEntropyLoss(weight, label_smoothing=self.label_smoothing)

    def configure_metrics(self) -> None:
        self.set_metrics(classification_metrics(len(self.classes)))
        self.train_metrics = MetricCollection({}, prefix="train/")
        self.confusion = MulticlassConfusionMatrix(len(self.classes))

    # --- steps ----------------------------------------------------------------------------------------------------

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return each stream's logits (B, K)."""
        assert isinstance(self.model, nn.ModuleDict)  # as configure_models makes it
        more = (batch.get("length"),) if self.takes_length else ()
        return {name: network(batch[name], *more).float() for name, network in self.model.items()}

    def fused(self, logits: Mapping[str, Tensor]) -> Tensor:
        """Return the streams' averaged probabilities (..., K)."""
        video = logits["video"].softmax(-1)
        if "motion" not in logits:
            return video
        return (1 - self.motion_weight) * video + self.motion_weight * logits["motion"].softmax(-1)

    def compute(self, batch: Any, stage: Stage) -> Tensor:
        logits = self(batch)
        loss = torch.stack([self.criterion(value, batch["target"]) for value in logits.values()]).sum()
        probabilities = self.fused({name: value.detach() for name, value in logits.items()})
        if stage != "train":
            self.metrics(stage).update(probabilities, batch["target"])
        if stage == "test":
            self.confusion.update(probabilities, batch["target"])
        return loss

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> list[Timeline]:
        assert isinstance(self.model, nn.ModuleDict)  # as configure_models makes it
        videos = self._data.videos("predict").videos
        found = []
        for number in batch.tolist():
            video = videos[number]
            scores = score_over_time(dict(self.model.items()), video, self.inputs, self.device)
            try:
                found.append(self._timeline(number, video.name, video.fps, scores))
            except DataError as error:
                self._data.leave_out(video, error)
        return found

    def _timeline(self, number: int, name: str, fps: float, scores: Any) -> Timeline:
        frames, rows, last = [], [], None
        score: Score
        for score in scores:
            frames.append(score.frame)
            rows.append(self.fused(score.logits).cpu().numpy())
            last = score
        assert last is not None  # a video without a frame is refused when it is read
        return Timeline(number, name, fps, np.array(frames), np.stack(rows), self.fused(last.so_far).cpu().numpy())

    # --- what a run writes ----------------------------------------------------------------------------------------

    def on_test_start(self) -> None:
        self.confusion.reset()
        self._counts = None

    def on_test_epoch_end(self) -> None:
        self._counts = self.confusion.compute().cpu().numpy().astype(np.int64)

    def draw(self, folder: Path) -> list[Path]:
        if self._counts is None:
            return []
        class_report(self._counts, self.classes, folder.parent / "classes.csv", "videos")
        if len(self.classes) > _MOST_DRAWN:
            return []
        return [confusion_figure(self._counts, self.classes, folder / "confusion.png")]

    def save_predictions(self, outputs: list[Any], folder: Path) -> Path:
        """Write ``predictions.csv`` (scores over time), ``videos.csv`` (one verdict each), and the timelines."""
        timelines = [timeline for output in outputs for timeline in output]
        if not timelines:
            raise DataError(f"no video could be read to its end; see {folder / 'skipped.csv'}")
        write_verdicts(timelines, self.classes, folder / "videos.csv")
        draw_timelines(timelines, self._data.videos("predict").videos, self.classes, folder / "figures")
        return write_scores(timelines, self.classes, folder / "predictions.csv")

    def describe_batch(self, batch: Any) -> str:
        videos = self._data.videos("train").videos
        return "videos " + ", ".join(videos[i].name for i in batch["index"].tolist()[:8])

    @property
    def _data(self) -> VideoData:
        data = None if self._trainer is None else getattr(self.trainer, "datamodule", None)
        if not isinstance(data, VideoData):
            raise ConfigError(f"{type(self).__name__} reads classes and sizes from a VideoData module; pass one")
        return data
