"""Average precision of boxes: by hand, beside KITTI's rules, and whatever the order frames come in."""

from __future__ import annotations

import math

import pytest
import torch

from scanweave.pointcloud import Detections
from scanweave.pointcloud.average_precision import BoxAP, average_precision, match


def test_the_formula_by_hand() -> None:
    assert average_precision(torch.tensor([True, True, True, True]), 4) == pytest.approx(1.0)
    # The second of three detections is an error: precision 1 up to recall 1/2, then 2/3.
    assert average_precision(torch.tensor([True, False, True]), 2) == pytest.approx((20 * 1 + 20 * 2 / 3) / 40)
    # Half of the objects are never found.
    assert average_precision(torch.tensor([True]), 2) == pytest.approx(0.5)
    assert average_precision(torch.tensor([False, False]), 3) == 0.0
    assert average_precision(torch.zeros(0, dtype=torch.bool), 3) == 0.0
    assert math.isnan(average_precision(torch.tensor([False]), 0))


def test_an_object_is_hit_once_by_the_better_detection() -> None:
    overlaps = torch.tensor([[0.8, 0.0], [0.9, 0.0], [0.1, 0.6], [0.0, 0.4]])
    assert match(overlaps, 0.5).tolist() == [True, False, True, False]
    assert match(torch.zeros(3, 0), 0.5).tolist() == [False] * 3


def detections(boxes: torch.Tensor, scores: list[float], labels: list[int]) -> Detections:
    return Detections(boxes, torch.tensor(scores), torch.tensor(labels))


def test_frames_in_any_order_and_twice_count_once() -> None:
    box = torch.tensor([[5.0, 0, 0, 4, 2, 1.5, 0.1]])
    other = box + torch.tensor([10.0, 0, 0, 0, 0, 0, 0])
    frames = [
        (0, torch.cat((box, other)), torch.tensor([0, 1]), detections(box, [0.9], [0])),
        (1, box, torch.tensor([0]), detections(other, [0.95], [0])),
        (2, box[:0], torch.tensor([], dtype=torch.int64), detections(box[:0], [], [])),
    ]
    wanted = {"Car/bev": 25.0, "Car/3d": 25.0, "Van/bev": 0.0, "Van/3d": 0.0}
    for order in ((0, 1, 2), (2, 1, 0), (1, 0, 0, 2)):
        metric = BoxAP({"Car": 0.7, "Van": 0.5})
        for i in order:
            index, boxes, labels, found = frames[i]
            metric.update([index], [boxes], [labels], [found])
        assert {key: float(value) for key, value in metric.compute().items()} == pytest.approx(wanted)


def test_height_counts_in_space_alone_and_a_class_without_objects_has_no_value() -> None:
    box = torch.tensor([[5.0, 0, 0, 4, 2, 1.5, 0.1]])
    raised = box + torch.tensor([0, 0, 1.0, 0, 0, 0, 0])
    metric = BoxAP({"Car": 0.7, "Van": 0.5})
    metric.update([0], [box], [torch.tensor([0])], [detections(raised, [0.5], [0])])
    found = {key: float(value) for key, value in metric.compute().items()}
    assert found["Car/bev"] == pytest.approx(100)
    assert found["Car/3d"] == 0
    assert math.isnan(found["Van/3d"])
