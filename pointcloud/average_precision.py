"""Average precision of lidar boxes, for classes of one's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from .head import Detections
from .overlap import box_iou

_RECALLS = 40
_WIDTH = 11


def average_precision(hits: Tensor, objects: int) -> float:
    """Return the average precision of detections by falling score.

    ``AP = 1/40 sum_{r in {1/40, ..., 1}} max_{r' >= r} p(r')``, p(r') the share of hits among the detections down to
    the one with which the recall reaches r'.

    Args:
        hits: (K,) bool, whether each detection found an object that none before it had.
        objects: How many objects there are.

    Returns:
        Between 0 and 1; NaN without objects.

    Source:
        Simonelli et al., Disentangling monocular 3D object detection (2019), equation 10.
    """
    if not objects:
        return float("nan")
    found = hits.double().cumsum(0)
    precision = found / torch.arange(1, len(hits) + 1, dtype=torch.float64)
    # The best precision from each detection on.
    precision = precision.flip(0).cummax(0).values.flip(0) if len(hits) else precision
    wanted = torch.arange(1, _RECALLS + 1, dtype=torch.float64) / _RECALLS * objects
    place = torch.searchsorted(found, wanted - 1e-9)
    reached = place < len(hits)
    return float(precision[place[reached]].sum() / _RECALLS)


class BoxAP(Metric):
    """Average precision of each class over the frames seen, on 40 recall positions, without KITTI's difficulties.

    A detection hits the object of its class that it overlaps most, if by at least the class's threshold and if no
    better detection hit it; every other detection is an error. A frame that comes twice counts once.

    Args:
        thresholds: For each class by name, in the labels' order, the least intersection over union of a hit.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    rows: list[Tensor]

    def __init__(self, thresholds: Mapping[str, float]) -> None:
        super().__init__()
        self.thresholds = dict(thresholds)
        self.add_state("rows", default=[], dist_reduce_fx="cat")

    def update(
        self, frames: Sequence[int], boxes: Sequence[Tensor], labels: Sequence[Tensor], detections: Sequence[Detections]
    ) -> None:
        """Take some frames.

        Args:
            frames: Each frame's number, unique in the data.
            boxes: Each frame's objects (M, 7).
            labels: Each frame's labels (M,) int64.
            detections: Each frame's detections.
        """
        for frame, own, kinds, found in zip(frames, boxes, labels, detections, strict=True):
            # Rows of (frame, side, label, score, box); one of side -1 marks the frame as seen.
            sides = [torch.tensor([[frame, -1.0] + [0.0] * (_WIDTH - 2)], dtype=torch.float64)]
            for side, (these, what, scores) in enumerate(
                ((own, kinds, torch.zeros(len(own))), (found.boxes, found.labels, found.scores))
            ):
                head = torch.tensor([[float(frame), float(side)]], dtype=torch.float64).expand(len(these), 2)
                columns = (head, what[:, None].cpu().double(), scores[:, None].cpu().double(), these.cpu().double())
                sides.append(torch.cat(columns, 1))
            self.rows.append(torch.cat(sides).to(self.device))

    def compute(self) -> dict[str, Tensor]:
        """Return ``class/bev`` and ``class/3d`` -> percent; NaN for a class without objects."""
        rows = dim_zero_cat(self.rows).cpu()
        frames = [_once(rows[rows[:, 0] == frame]) for frame in rows[:, 0].unique()]
        return {
            f"{name}/{space}": torch.tensor(100 * self._average(frames, label, space, least), device=self.device)
            for label, (name, least) in enumerate(self.thresholds.items())
            for space in ("bev", "3d")
        }

    def _average(self, frames: Sequence[Tensor], label: int, space: str, least: float) -> float:
        scores, hits, objects = [torch.zeros(0, dtype=torch.float64)], [torch.zeros(0, dtype=torch.bool)], 0
        for rows in frames:
            own = rows[rows[:, 2] == label]
            truth, found = own[own[:, 1] == 0], own[own[:, 1] == 1]
            found = found[found[:, 3].argsort(descending=True, stable=True)]
            scores.append(found[:, 3])
            hits.append(match(box_iou(found[:, 4:], truth[:, 4:], space), least))
            objects += len(truth)
        every = torch.cat(scores)
        return average_precision(torch.cat(hits)[every.argsort(descending=True, stable=True)], objects)


def match(overlaps: Tensor, least: float) -> Tensor:
    """Say which detections hit an object.

    Args:
        overlaps: (K, M) of detections, by falling score, with objects.
        least: The least overlap of a hit.

    Returns:
        (K,) bool.
    """
    hits = torch.zeros(len(overlaps), dtype=torch.bool)
    if not overlaps.shape[1]:
        return hits
    taken = torch.zeros(overlaps.shape[1], dtype=torch.bool)
    best, which = overlaps.max(1)
    for place in torch.nonzero(best >= least)[:, 0].tolist():
        hits[place] = not taken[which[place]]
        taken[which[place]] = True
    return hits


def _once(rows: Tensor) -> Tensor:
    """Return a frame's rows as they came first, without the mark."""
    starts = torch.nonzero(rows[:, 1] == -1)[:, 0]
    return rows[1 : int(starts[1])] if len(starts) > 1 else rows[1:]
