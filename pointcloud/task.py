"""Detection in point clouds under the shared training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

import pandas as pd
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim.lr_scheduler import OneCycleLR
from torchmetrics import Metric

from ..core.errors import ConfigError
from ..core.optimizers import create_optimizer
from ..core.storage import atomic_file
from ..core.task import Stage, Task
from .anchors import AnchorClass
from .average_precision import BoxAP
from .data import Detect3dData, anchor_of
from .head import Detections
from .kitti.metric import KittiAP
from .kitti.objects import Objects, write_detections
from .kitti.view import draw_frame, draw_on_image
from .presets import create_detector
from .results import kitti_objects, kitti_table, write_table
from .sources import Frame

_MOST_DRAWN = 4
# Share of the steps in which the learning rate rises, what it starts from, and Adam's first momentum over the cycle.
_ONE_CYCLE: dict[str, Any] = {
    "pct_start": 0.4, "div_factor": 10.0, "base_momentum": 0.85, "max_momentum": 0.95
}  # fmt: skip


class Detection3d(Task):
    """Any detector of :func:`~scanweave.pointcloud.list_detectors`, for boxes of some classes.

    Reports KITTI's average precision where the frames have its labels: ``ap`` is the mean over classes of the one in
    space (3D), on 40 recall positions, moderate, a class that was never detected counting 0; those on 11 positions
    stand beside it. For classes of one's own it is that of
    :class:`~scanweave.pointcloud.average_precision.BoxAP`, in space. After a test ``ap.csv`` has all averages,
    ``detections/`` the boxes in KITTI's format where the frames are calibrated, and ``figures/`` the first frames.

    Args:
        detector: Its name, such as lion_mamba_kitti_small.
        detector_options: Further arguments of the detector, such as ``{"point_range": [0, -20, -3, 40, 20, 1]}``.
        overlaps: KITTI's least overlaps: ``strict`` (0.7, 0.5, 0.5), or ``loose``.
        least_overlap: Least overlap of a hit for classes of one's own, by name; by default 0.7 for those whose
            anchors need 0.6 to stand for an object, and 0.5 for others.
        lr: Learning rate; the cycle's highest.
        weight_decay: Decay of matrices.
        schedule: Learning rate over steps: ``one_cycle`` rises from a tenth over 40 % of the steps and falls to
            nearly 0, while the momentum does the opposite between 0.95 and 0.85; or as of all tasks.
        options: The shared training's other arguments.

    Source:
        Liu et al., LION (2024), and the authors' configuration for KITTI.
    """

    monitor = "val/ap"
    monitor_mode = "max"

    def __init__(
        self,
        detector: str = "lion_mamba_kitti_small",
        detector_options: dict[str, Any] | None = None,
        overlaps: Literal["strict", "loose"] = "strict",
        least_overlap: dict[str, float] | None = None,
        lr: float = 3e-3,
        weight_decay: float = 0.01,
        schedule: Literal["one_cycle", "constant", "cosine", "exponential"] = "one_cycle",
        **options: Any,
    ) -> None:
        usual = "constant" if schedule == "one_cycle" else schedule
        super().__init__(lr=lr, weight_decay=weight_decay, schedule=usual, **options)
        self.is_one_cycle = schedule == "one_cycle"
        self.detector, self.detector_options = detector, dict(detector_options or {})
        self.overlaps, self.least_overlap = overlaps, least_overlap
        self._context: dict[str, Any] = {}
        self._shown: list[tuple[Frame, Detections]] = []
        self._values: dict[str, float] = {}

    # --- context and network --------------------------------------------------------------------------------------

    def context(self) -> dict[str, Any]:
        if not self._context:
            self._context = self._data.context()
        return self._context

    def set_context(self, context: Mapping[str, Any]) -> None:
        """Take ``anchors``, ``features`` and ``is_calibrated`` of a trained model."""
        self._context = dict(context)

    @property
    def anchors(self) -> tuple[AnchorClass, ...]:
        """The classes' anchors, by label."""
        return tuple(anchor_of(values) for values in self.context()["anchors"])

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes' names, by label."""
        return tuple(anchor.name for anchor in self.anchors)

    def configure_models(self) -> None:
        options = {"in_features": self.context()["features"], **self.detector_options}
        self.model = create_detector(self.detector, self.anchors, **options)
        self._range = tuple(self.model.reader.grid.point_range)

    def configure_metrics(self) -> None:
        self.set_metrics({})
        self.val_ap, self.test_ap = self._create_metric(), self._create_metric()

    def _create_metric(self) -> Metric:
        if self.context()["is_calibrated"]:
            return KittiAP(self.overlaps)
        thresholds = {anchor.name: 0.7 if anchor.matched >= 0.6 else 0.5 for anchor in self.anchors}
        for name, least in (self.least_overlap or {}).items():
            if name not in thresholds or not 0 < least < 1:
                raise ConfigError(
                    f"--model.least_overlap is {self.least_overlap}; expected shares between 0 and 1 of "
                    f"{', '.join(thresholds)}"
                )
            thresholds[name] = least
        return BoxAP(thresholds)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        if not self.is_one_cycle:
            return super().configure_optimizers()
        steps = self.trainer.estimated_stepping_batches
        if not math.isfinite(steps):
            raise ConfigError("the schedule one_cycle needs to know the run's length; set --trainer.max_epochs")
        optimizer = create_optimizer(self.optimizer, self.optimizer_groups(), self.lr)
        cycle = OneCycleLR(optimizer, self.lr, total_steps=int(steps), **_ONE_CYCLE)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cycle, "interval": "step"}}

    # --- steps ----------------------------------------------------------------------------------------------------

    def batch_size(self, batch: Any) -> int:
        return len(batch["index"])

    def compute(self, batch: Any, stage: Stage) -> Tensor:
        model: Any = self.model
        kept = [self._in_range(boxes) for boxes in batch["boxes"]]
        boxes = [own[rows] for own, rows in zip(batch["boxes"], kept, strict=True)]
        labels = [own[rows] for own, rows in zip(batch["labels"], kept, strict=True)]
        maps = model(batch["points"])
        loss: Tensor = model.head.loss(maps, boxes, labels)["loss"]
        if stage != "train":
            self._measure(batch, model.head.decode(maps), stage)
        return loss

    def _in_range(self, boxes: Tensor) -> Tensor:
        low, high = boxes.new_tensor(self._range).view(2, 3)
        return ((boxes[:, :2] >= low[:2]) & (boxes[:, :2] < high[:2])).all(1)

    def _measure(self, batch: Any, detections: list[Detections], stage: Literal["val", "test"]) -> None:
        index = batch["index"].tolist()
        frames = [self._data.described(stage, number) for number in index]
        metric: Any = self.test_ap if stage == "test" else self.val_ap
        if isinstance(metric, KittiAP):
            found = [self._in_kitti(one, frame) for one, frame in zip(detections, frames, strict=True)]
            metric.update(index, [cast(Objects, frame.objects) for frame in frames], found)
            if stage == "test":
                for frame, objects in zip(frames, found, strict=True):
                    write_detections(self._folder / "detections" / f"{frame.name}.txt", objects)
        else:
            metric.update(index, batch["boxes"], batch["labels"], detections)
        if stage == "test" and len(self._shown) < _MOST_DRAWN:
            for number, found_here in zip(index, detections, strict=True):
                self._shown.append((self._data.frame("test", number), _to_cpu(found_here)))

    @property
    def _folder(self) -> Path:
        return Path(self.trainer.default_root_dir)

    def on_validation_epoch_end(self) -> None:
        self._log_averages(self.val_ap, "val")

    def on_test_start(self) -> None:
        self._shown, self._values = [], {}

    def on_test_epoch_end(self) -> None:
        self._values = self._log_averages(self.test_ap, "test")

    def _log_averages(self, metric: Any, stage: Stage) -> dict[str, float]:
        if not metric.update_called:
            return {}
        values = {key: float(value) for key, value in metric.compute().items()}
        metric.reset()
        calibrated = isinstance(metric, KittiAP)
        values = {key: value for key, value in values.items() if key.split("/")[0] in self.classes}
        heads = [values[f"{name}/3d/R40/moderate" if calibrated else f"{name}/3d"] for name in self.classes]
        # KITTI's rules give no value to a class that was never detected.
        known = [0.0 if math.isnan(value) else value for value in heads if calibrated or not math.isnan(value)]
        self.log(f"{stage}/ap", sum(known) / len(known) if known else 0.0, prog_bar=stage == "val")
        if stage == "test":
            shown = {key: value for key, value in values.items() if not calibrated or _is_reported(key)}
            self.log_dict({f"test/{key}": value for key, value in shown.items() if not math.isnan(value)})
        return values

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, list[Any]]:
        model: Any = self.model
        found = model.detect(batch["points"])
        # Plain tensors: Lightning walks through what it is given.
        return {"index": batch["index"].tolist(), "found": [(one.boxes, one.scores, one.labels) for one in found]}

    # --- what a run writes ----------------------------------------------------------------------------------------

    def draw(self, folder: Path) -> list[Path]:
        """Draw the first frames of the last test, and write ``ap.csv``."""
        if not self._values:
            return []
        calibrated = self.context()["is_calibrated"]
        table = kitti_table(self._values) if calibrated else _box_table(self._values)
        with atomic_file(folder.parent / "ap.csv", "w") as file:
            table.to_csv(file, index=False)
        drawn = []
        for frame, found in self._shown[:_MOST_DRAWN]:
            drawn += draw_views(folder, frame, found.boxes, self._range)
        return drawn

    def save_predictions(self, outputs: list[Any], folder: Path) -> Path:
        """Write ``predictions.csv``, and ``detections/FRAME.txt`` in KITTI's format for calibrated frames."""
        frames = [self._data.described("predict", index) for output in outputs for index in output["index"]]
        detections = [_to_cpu(Detections(*found)) for output in outputs for found in output["found"]]
        for frame, found in zip(frames, detections, strict=True):
            if frame.calibration is not None:
                write_detections(folder / "detections" / f"{frame.name}.txt", self._in_kitti(found, frame))
        return write_table(folder / "predictions.csv", [frame.name for frame in frames], detections, self.classes)

    def describe_batch(self, batch: Any) -> str:
        return "frames " + ", ".join(self._data.described("train", index).name for index in batch["index"].tolist()[:8])

    def _in_kitti(self, found: Detections, frame: Frame) -> Objects:
        return kitti_objects(found, self.classes, *frame.camera)

    @property
    def _data(self) -> Detect3dData:
        data = None if self._trainer is None else getattr(self.trainer, "datamodule", None)
        if not isinstance(data, Detect3dData):
            raise ConfigError(f"{type(self).__name__} reads classes from a Detect3dData module; pass one")
        return data


def draw_views(folder: Path, frame: Frame, detections: Tensor | None, point_range: Any) -> list[Path]:
    """Draw a frame from above, and on its image where there is one; return the files."""
    drawn = [draw_frame(folder / f"{frame.name}.png", frame.points, frame.boxes, detections, frame.name, point_range)]
    if frame.image is not None and frame.calibration is not None:
        path = folder / f"{frame.name}_image.png"
        drawn.append(draw_on_image(path, frame.image, frame.calibration, frame.boxes, detections, frame.name))
    return drawn


def _is_reported(key: str) -> bool:
    """Whether one of KITTI's averages is printed, not only written to the table."""
    _, metric, _, difficulty = key.split("/")
    return metric in ("3d", "bev") and difficulty == "moderate"


def _box_table(values: Mapping[str, float]) -> pd.DataFrame:
    rows = [(*key.split("/"), "R40", round(value, 4)) for key, value in values.items()]
    return pd.DataFrame(rows, columns=["class", "metric", "recalls", "ap"])


def _to_cpu(found: Detections) -> Detections:
    return Detections(found.boxes.cpu(), found.scores.cpu(), found.labels.cpu())
