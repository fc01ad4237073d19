"""KITTI's average precision by the official rules: in the image, in orientation, from above and in space.

Source: the evaluation of the object development kit (Geiger, Lenz and Urtasun, Are we ready for autonomous driving?,
2012; 40 recall positions after Simonelli et al., Disentangling monocular 3D object detection, 2019).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...core.errors import ConfigError, DataError
from ..boxes import camera_to_upright
from ..overlap import aligned_iou
from .objects import DIFFICULTIES, MIN_HEIGHT, Objects, read_objects

METRICS = ("2d", "bev", "3d")
_NEIGHBOUR = {"Car": "van", "Pedestrian": "person_sitting", "Cyclist": None}
CLASSES = tuple(_NEIGHBOUR)
# Overlaps a detection must exceed, by class, for "2d", "bev" and "3d".
OVERLAPS = {
    "strict": {"Car": (0.7, 0.7, 0.7), "Pedestrian": (0.5, 0.5, 0.5), "Cyclist": (0.5, 0.5, 0.5)},
    "loose": {"Car": (0.7, 0.5, 0.5), "Pedestrian": (0.5, 0.25, 0.25), "Cyclist": (0.5, 0.25, 0.25)},
}
_SAMPLES = 41
_CHUNK = 1 << 17


@dataclass(frozen=True)
class _Frame:
    """One frame as the rules look at it: labels x detections."""

    labels: Objects
    detections: Objects
    label_names: np.ndarray
    detection_names: np.ndarray
    overlaps: dict[str, np.ndarray]
    dont_care: np.ndarray  # (D,): the largest share of a detection's image box that one DontCare region covers


def _image_overlap(labels: np.ndarray, detections: np.ndarray, union: bool) -> np.ndarray:
    """Return (G, D): intersection over union of image boxes, or over the detection's area."""
    low = np.maximum(labels[:, None, :2], detections[None, :, :2])
    high = np.minimum(labels[:, None, 2:], detections[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(-1)
    over = np.broadcast_to((detections[:, 2:] - detections[:, :2]).prod(-1), shared.shape)
    if union:
        over = over + (labels[:, 2:] - labels[:, :2]).prod(-1)[:, None] - shared
    return np.divide(shared, over, out=np.zeros_like(shared), where=over > 0)


def _spatial_overlaps(pairs: Sequence[tuple[Objects, Objects]], space: str) -> list[np.ndarray]:
    """Return (G, D) overlaps of each frame; all frames' pairs go through one call."""
    boxes = []
    for side in (0, 1):
        camera = torch.cat([pair[side].camera_boxes for pair in pairs])
        camera[:, 3:6] = camera[:, 3:6].clamp(min=0)  # -1 stands for a size that is not known
        boxes.append(camera_to_upright(camera))
    shapes = [(len(labels), len(detections)) for labels, detections in pairs]
    first = np.cumsum([(0, 0), *shapes], axis=0)
    i = np.concatenate([np.repeat(np.arange(g), d) + a for (g, d), (a, _) in zip(shapes, first, strict=False)])
    j = np.concatenate([np.tile(np.arange(d), g) + b for (g, d), (_, b) in zip(shapes, first, strict=False)])
    flat = [
        aligned_iou(boxes[0][torch.from_numpy(i[k : k + _CHUNK])], boxes[1][torch.from_numpy(j[k : k + _CHUNK])], space)
        for k in range(0, max(len(i), 1), _CHUNK)
    ]
    sizes = np.cumsum([g * d for g, d in shapes])[:-1]
    return [part.reshape(shape) for part, shape in zip(np.split(torch.cat(flat).numpy(), sizes), shapes, strict=True)]


def _prepare(pairs: Sequence[tuple[Objects, Objects]]) -> list[_Frame]:
    spatial = {space: _spatial_overlaps(pairs, space) for space in ("bev", "3d")}
    frames = []
    for index, (labels, detections) in enumerate(pairs):
        names = np.array([name.lower() for name in labels.names], dtype=object)
        image, found = labels.image_boxes.numpy(), detections.image_boxes.numpy()
        covered = _image_overlap(image[names == "dontcare"], found, union=False)
        frames.append(
            _Frame(
                labels,
                detections,
                names,
                np.array([name.lower() for name in detections.names], dtype=object),
                {"2d": _image_overlap(image, found, union=True), **{k: v[index] for k, v in spatial.items()}},
                covered.max(0, initial=0.0),
            )
        )
    return frames


@dataclass(frozen=True)
class _Counted:
    """What of a frame counts for one class and difficulty: rows and columns without a part in it are gone."""

    overlap: np.ndarray  # (G, D)
    own: np.ndarray  # (G,) bool: must be found; the others may be found, and neither gain nor cost
    small: np.ndarray  # (D,) bool: too low for the difficulty; may take a label, and costs nothing
    scores: np.ndarray  # (D,)
    turn: np.ndarray  # (G, D): how well the orientations agree, in [0, 1]
    stray: np.ndarray  # (D,) bool: lies in a DontCare region


def _select(frame: _Frame, name: str, difficulty: int, metric: str, least: float) -> _Counted:
    own = frame.label_names == name.lower()
    rows = np.flatnonzero(own | (frame.label_names == _NEIGHBOUR[name]))
    height = np.abs((frame.detections["bottom"] - frame.detections["top"]).numpy())
    small = height < MIN_HEIGHT[difficulty]
    columns = np.flatnonzero(small | (frame.detection_names == name.lower()))
    alpha = frame.labels["alpha"].numpy()[rows, None] - frame.detections["alpha"].numpy()[columns]
    return _Counted(
        frame.overlaps[metric][np.ix_(rows, columns)],
        (own & frame.labels.within(difficulty).numpy())[rows],
        small[columns],
        frame.detections["score"].numpy()[columns],
        (1 + np.cos(alpha)) / 2,
        (frame.dont_care[columns] > least) & (metric == "2d"),
    )


def _hit_scores(frame: _Counted, least: float) -> list[float]:
    """Return the scores of the detections that find labels when each label takes its best-scored candidate."""
    free = np.ones(len(frame.scores), dtype=bool)
    hits = []
    for row, own in zip(frame.overlap, frame.own, strict=True):
        candidates = free & (row > least)
        if candidates.any():
            best = int(np.where(candidates, frame.scores, -np.inf).argmax())
            free[best] = False
            if own and not frame.small[best]:
                hits.append(float(frame.scores[best]))
    return hits


def _thresholds(hits: list[float], labels: int) -> np.ndarray:
    """Return the scores at which recall comes nearest to each of the evenly spaced positions."""
    chosen = []
    recall = 0.0
    ordered = sorted(hits, reverse=True)
    for index, score in enumerate(ordered):
        left = (index + 1) / labels
        last = index == len(ordered) - 1
        right = left if last else (index + 2) / labels
        if right - recall < recall - left and not last:
            continue
        chosen.append(score)
        recall += 1 / (_SAMPLES - 1)
    return np.array(chosen[:_SAMPLES])


def _count(frame: _Counted, thresholds: np.ndarray, least: float) -> np.ndarray:
    """Return (3, T): true positives, false positives and the sum of orientation agreements at each threshold."""
    free = frame.scores >= thresholds[:, None]
    steps = np.arange(len(thresholds))
    hits, agreement = np.zeros(len(thresholds)), np.zeros(len(thresholds))
    for row, own, turn in zip(frame.overlap, frame.own, frame.turn, strict=True):
        over = row > least
        if not over.any():
            continue
        full = free & (over & ~frame.small)
        low = free & (over & frame.small)
        hit = full.any(1)
        # The largest overlap wins; a detection that is too small takes the label where no other does.
        best = np.where(hit, np.where(full, row, -1.0).argmax(1), low.argmax(1))
        taken = hit | low.any(1)
        free[steps[taken], best[taken]] = False
        if own:
            hits += hit
            agreement += np.where(hit, turn[best], 0.0)
    false = (free & ~frame.small & ~frame.stray).sum(1)
    return np.stack((hits, false, agreement))


def _curves(frames: Iterable[_Frame], name: str, difficulty: int, metric: str, least: float) -> np.ndarray:
    """Return (2, 41): precision and orientation similarity, each the best at that recall or a higher one."""
    counted = [_select(frame, name, difficulty, metric, least) for frame in frames]
    labels = int(sum(frame.own.sum() for frame in counted))
    thresholds = _thresholds([score for frame in counted for score in _hit_scores(frame, least)], labels)
    curves = np.zeros((2, _SAMPLES))
    if len(thresholds):
        total = sum((_count(frame, thresholds, least) for frame in counted if len(frame.scores)), np.zeros((3, 1)))
        found = total[0] + total[1]
        for curve, gained in zip(curves, (total[0], total[2]), strict=True):
            curve[: len(thresholds)] = np.divide(gained, found, out=np.zeros_like(found), where=found > 0)
    return np.maximum.accumulate(curves[:, ::-1], axis=1)[:, ::-1]


def _averages(curves: list[np.ndarray]) -> dict[str, list[float]]:
    return {
        "R40": [float(curve[1:].mean() * 100) for curve in curves],
        "R11": [float(curve[::4].mean() * 100) for curve in curves],
    }


def _detected(frames: Iterable[_Frame], name: str) -> dict[str, bool]:
    """Say in which of the metrics a class has at least one detection with the numbers that metric needs."""
    said = dict.fromkeys(METRICS, False)
    for frame in frames:
        chosen = frame.detections.values.numpy()[frame.detection_names == name.lower()]
        place, size = chosen[:, 10:13] != -1000, chosen[:, 7:10] > 0
        said["2d"] |= bool((chosen[:, 3] >= 0).any())
        said["bev"] |= bool((place[:, [0, 2]].all(1) & size[:, 1:].all(1)).any())
        said["3d"] |= bool((place.all(1) & size.all(1)).any())
    return said


def evaluate(pairs: Sequence[tuple[Objects, Objects]], overlaps: str = "strict") -> dict[str, dict[str, Any]]:
    """Return KITTI's average precisions of detections in some frames.

    ``R40 = mean over recall 1/40 .. 1 of the best precision at that recall or a higher one``; ``R11`` takes 0, 0.1,
    .., 1. There are at most as many positions as labels found, so few labels cannot reach 100.

    Args:
        pairs: Each frame's (labels, detections).
        overlaps: "strict" asks for 0.7 (Car) and 0.5 (Pedestrian, Cyclist); "loose" for 0.5 and 0.25 in "bev" and "3d".

    Returns:
        class -> "2d", "aos", "bev", "3d" -> "R40", "R11" -> [easy, moderate, hard] in percent. None stands where the
        rules give no value: a class never detected, and "aos" where a detection of any class has no alpha (-10).

    Raises:
        ConfigError: ``overlaps`` is another word.
        DataError: There is no frame.
    """
    if overlaps not in OVERLAPS:
        raise ConfigError(f"overlaps is {overlaps!r}, expected one of {', '.join(map(repr, OVERLAPS))}")
    if not pairs:
        raise DataError("no frame to evaluate: expected at least one pair of labels and detections")
    frames = _prepare(pairs)
    oriented = not any(bool((detections["alpha"] == -10).any()) for _, detections in pairs)
    result: dict[str, dict[str, Any]] = {}
    for name in CLASSES:
        said = _detected(frames, name)
        values: dict[str, Any] = {"2d": None, "aos": None, "bev": None, "3d": None}
        for metric, least in zip(METRICS, OVERLAPS[overlaps][name], strict=True):
            if not said[metric]:
                continue
            curves = [_curves(frames, name, level, metric, least) for level in range(len(DIFFICULTIES))]
            values[metric] = _averages([curve[0] for curve in curves])
            if metric == "2d" and oriented:
                values["aos"] = _averages([curve[1] for curve in curves])
        result[name] = values
    return result


def evaluate_folder(labels: str | Path, detections: str | Path, overlaps: str = "strict") -> dict[str, dict[str, Any]]:
    """Evaluate a folder of result files against a folder of label files, as `evaluate` does.

    Frames without a result file are left out; an empty result file counts as a frame without detections.

    Args:
        labels: Folder of ``NNNNNN.txt`` as in KITTI's ``label_2``.
        detections: Folder of result files of the same names.
        overlaps: "strict" or "loose".

    Returns:
        As `evaluate`.

    Raises:
        DataError: A folder or a label file is absent, or a line is malformed (file:line).
        ConfigError: ``overlaps`` is another word.
    """
    for folder in (Path(labels), Path(detections)):
        if not folder.is_dir():
            raise DataError(f"{folder}: not a folder; expected one text file a frame")
    files = sorted(Path(detections).glob("*.txt"))
    if not files:
        raise DataError(f"{detections}: holds no .txt file; a frame without detections has an empty one")
    pairs = [(read_objects(Path(labels) / file.name), read_objects(file, scored=True)) for file in files]
    return evaluate(pairs, overlaps)
