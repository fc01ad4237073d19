"""Anchors: where they stand, their offsets from boxes, and what they stand for beside a plain loop."""

from __future__ import annotations

import math

import pytest
import torch

from scanweave.core import ConfigError
from scanweave.pointcloud import KITTI_CLASSES, AnchorClass
from scanweave.pointcloud.anchors import AnchorGrid, decode, encode, upright_extent

from .test_overlap import random_boxes

RANGE = (0.0, -4.0, -3.0, 12.0, 6.0, 1.0)


def grid(classes=KITTI_CLASSES, shape: tuple[int, int] = (10, 12)) -> AnchorGrid:
    return AnchorGrid(classes, RANGE, shape)


def street(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return boxes near the classes' sizes within the range and beyond, and their labels."""
    made = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (count,), generator=made)
    sizes = torch.tensor([one.size for one in KITTI_CLASSES])[labels]
    sizes = sizes * (0.8 + 0.4 * torch.rand(count, 3, generator=made))
    place = torch.rand(count, 3, generator=made) * torch.tensor([14.0, 12.0, 2.0]) + torch.tensor([-1.0, -5.0, -2.0])
    return torch.cat((place, sizes, (torch.rand(count, 1, generator=made) - 0.5) * 8), 1), labels


def test_anchors_stand_at_the_centres_of_cells_in_the_order_of_y_x_class_and_rotation():
    anchors = grid()
    assert len(anchors) == 10 * 12 * 6
    every = anchors.at(torch.arange(len(anchors))).view(10, 12, 3, 2, 7)
    torch.testing.assert_close(
        every[3, 5, 1, 1], torch.tensor([5.5, -0.5, -0.6 + 1.73 / 2, 0.8, 0.6, 1.73, math.pi / 2])
    )
    torch.testing.assert_close(every[0, 0, 0, 0], torch.tensor([0.5, -3.5, -1.78 + 0.78, 3.9, 1.6, 1.56, 0.0]))


def test_offsets_are_the_equations_and_lead_back():
    anchor = torch.tensor([1.0, 2.0, -1.0, 4.0, 3.0, 2.0, 0.5])
    box = torch.tensor([2.0, 0.0, 0.0, 8.0, 3.0, 1.0, 2.0])
    wanted = torch.tensor([0.2, -0.4, 0.5, math.log(2), 0.0, math.log(0.5), 1.5])
    torch.testing.assert_close(encode(box, anchor), wanted)
    boxes, anchors = random_boxes(200, 0), random_boxes(200, 1)
    torch.testing.assert_close(decode(encode(boxes, anchors), anchors), boxes, rtol=1e-10, atol=1e-10)
    assert torch.isfinite(decode(torch.full((7,), 1e4), anchor)).all()


@pytest.mark.parametrize(
    ("heading", "turned"),
    [(0, False), (0.7, False), (0.9, True), (2.3, True), (2.4, False), (-1.6, True), (6.3, False)],
)
def test_boxes_turn_to_the_nearest_axis(heading, turned):
    extent = upright_extent(torch.tensor(4.0), torch.tensor(2.0), torch.tensor(float(heading)))
    assert tuple(map(float, extent)) == ((2, 4) if turned else (4, 2))


def loop_targets(anchors: AnchorGrid, boxes: torch.Tensor, labels: torch.Tensor) -> list[int]:
    """Return for each anchor its object, -1 for background, -2 for neither: rectangle beside rectangle."""

    def sides(box: list[float]) -> tuple[float, float, float, float]:
        across = abs((box[6] + math.pi / 2) % math.pi - math.pi / 2) >= math.pi / 4
        length, width = (box[4], box[3]) if across else (box[3], box[4])
        return box[0] - length / 2, box[1] - width / 2, box[0] + length / 2, box[1] + width / 2

    def iou(a: tuple[float, ...], b: tuple[float, ...]) -> float:
        shared = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
        return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)

    every = [sides(box) for box in anchors.at(torch.arange(len(anchors))).double().tolist()]
    objects = [sides(box) for box in boxes.double().tolist()]
    rotations = len(KITTI_CLASSES[0].rotations)
    kinds = [(index // rotations) % len(KITTI_CLASSES) for index in range(len(every))]
    table = [
        [iou(anchor, box) if kind == label else 0.0 for box, label in zip(objects, labels.tolist(), strict=True)]
        for anchor, kind in zip(every, kinds, strict=True)
    ]
    best = [max(column) for column in zip(*table, strict=True)]
    found = []
    for row, kind in zip(table, kinds, strict=True):
        own = [i for i, overlap in enumerate(row) if overlap > 0 and overlap > best[i] - 1e-6]
        most = max(range(len(row)), key=row.__getitem__)
        if own:
            found.append(max(own, key=row.__getitem__))
        elif row[most] >= KITTI_CLASSES[kind].matched:
            found.append(most)
        else:
            found.append(-1 if row[most] < KITTI_CLASSES[kind].unmatched else -2)
    return found


@pytest.mark.parametrize("seed", [0, 1])
def test_targets_are_those_of_a_plain_loop(seed):
    anchors = grid(shape=(20, 24))
    frames = [street(9, seed), street(0, 0), street(14, seed + 10)]
    targets = anchors.assign([boxes for boxes, _ in frames], [labels for _, labels in frames])
    start, kinds = 0, set()
    for index, (boxes, labels) in enumerate(frames):
        found = torch.where(targets.ignored[index], -2, -1)
        mine = targets.frame == index
        found[targets.anchor[mine]] = targets.object[mine] - start
        assert targets.counts[index] == mine.sum()
        if len(boxes):
            assert found.tolist() == loop_targets(anchors, boxes, labels)
        else:
            assert (found == -1).all()
        start += len(boxes)
        kinds |= {int(value) for value in found.clamp(max=0)}
    assert kinds == {-2, -1, 0}


def test_every_object_within_the_range_has_an_anchor_and_none_beyond_it():
    anchors = grid()
    boxes, labels = street(40, 3)
    boxes[:, 0], boxes[:, 1] = boxes[:, 0].clamp(0, 12), boxes[:, 1].clamp(-4, 6)
    # Apart from each other, so that none takes another's best anchor.
    for box, label in zip(boxes, labels, strict=True):
        assert anchors.assign([box[None]], [label[None]]).counts.item() >= 1
    far = boxes + torch.tensor([100.0, 0, 0, 0, 0, 0, 0])
    targets = anchors.assign([far], [labels])
    assert targets.counts.item() == 0
    assert not targets.ignored.any()


def test_of_two_objects_with_one_best_anchor_the_one_that_it_overlaps_more_has_it():
    one = AnchorClass("Car", (2.0, 1.0, 1.0), 0.0, 0.9, 0.8, (0.0,))
    anchors = AnchorGrid([one], (0, 0, 0, 4, 2, 1), (2, 4))
    center = anchors.at(torch.tensor(1))
    worse, better = center.clone(), center.clone()
    worse[1] += 0.2
    better[1] += 0.1
    for pair, row in (((worse, better), 1), ((better, worse), 0)):
        targets = anchors.assign([torch.stack(pair)], [torch.zeros(2, dtype=torch.int64)])
        assert targets.object[targets.anchor == 1].tolist() == [row]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: grid(classes=()), "classes are .*expected one or more"),
        (lambda: grid(classes=(KITTI_CLASSES[0],) * 2), "'Car', 'Car'.*each once"),
        (
            lambda: grid(classes=(*KITTI_CLASSES, AnchorClass("Tram", (15, 2.5, 3.5), -1.7, 0.6, 0.45, (0.0,)))),
            "Tram has 1 rotations and Car has 2",
        ),
        (lambda: AnchorClass("Car", (3.9, 0.0, 1.5), -1.7, 0.6, 0.45), "Car has size"),
        (lambda: AnchorClass("Car", (3.9, 1.6, 1.5), -1.7, 0.4, 0.45), "unmatched 0.45 and matched 0.4"),
    ],
)
def test_wrong_classes_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_wrong_objects_are_named():
    anchors, (boxes, labels) = grid(), street(3, 0)
    with pytest.raises(ValueError, match="boxes has 1 frames and labels 2"):
        anchors.assign([boxes], [labels, labels])
    with pytest.raises(ValueError, match=r"frame 1: boxes has shape \(3, 6\)"):
        anchors.assign([boxes, boxes[:, :6]], [labels, labels])
    with pytest.raises(ValueError, match="expected 0 to 2"):
        anchors.assign([boxes], [labels + 3])
