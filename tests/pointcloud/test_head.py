"""The head: its losses beside plain sums, headings and their halves, and what it detects."""

from __future__ import annotations

import math

import pytest
import torch

from scanweave.core import ConfigError
from scanweave.pointcloud import KITTI_CLASSES, Suppression
from scanweave.pointcloud.anchors import encode
from scanweave.pointcloud.bev import BEVBackbone
from scanweave.pointcloud.head import AnchorHead, Maps, box_loss, direction_bin, with_direction

from .test_anchors import RANGE, loop_targets, street

SHAPE = (10, 12)


def head(**options) -> AnchorHead:
    torch.manual_seed(0)
    return AnchorHead(8, KITTI_CLASSES, RANGE, SHAPE, **options)


def draw_maps(frames: int = 2, seed: int = 0) -> Maps:
    made = torch.Generator().manual_seed(seed)
    count = SHAPE[0] * SHAPE[1] * 6
    return Maps(*(torch.randn(frames, count, width, generator=made).requires_grad_() for width in (3, 7, 2)))


def sure_maps(boxes: torch.Tensor, labels: torch.Tensor, one: AnchorHead) -> Maps:
    """Return the maps of a head that sees the boxes exactly, half of their headings by half a turn off."""
    targets = one.anchors.assign([boxes], [labels])
    maps = Maps(torch.full((1, len(one.anchors), 3), -9.0), torch.zeros(1, len(one.anchors), 7), torch.zeros(1, 1, 2))
    offsets = encode(boxes[targets.object], one.anchors.at(targets.anchor))
    offsets[::2, 6] += math.pi
    directions = torch.zeros(1, len(one.anchors), 2)
    directions[0, targets.anchor, direction_bin(boxes[targets.object, 6])] = 1
    maps.scores[0, targets.anchor, labels[targets.object]] = 4.0
    maps.residuals[0, targets.anchor] = offsets
    return Maps(maps.scores, maps.residuals, directions)


def test_losses_are_plain_sums():
    one, maps = head(), draw_maps()
    frames = [street(7, 0), street(5, 1)]
    found = one.loss(maps, [boxes for boxes, _ in frames], [labels for _, labels in frames])
    sums = {"score": 0.0, "box": 0.0, "direction": 0.0}
    for index, (boxes, labels) in enumerate(frames):
        told = loop_targets(one.anchors, boxes, labels)
        share = 1 / (2 * sum(row >= 0 for row in told))
        for place, row in enumerate(told):
            if row == -2:
                continue
            for kind, logit in enumerate(maps.scores[index, place].tolist()):
                positive = row >= 0 and kind == int(labels[row])
                p = 1 / (1 + math.exp(-logit if positive else logit))
                sums["score"] -= share * (0.25 if positive else 0.75) * (1 - p) ** 2 * math.log(p)
            if row < 0:
                continue
            wanted = encode(boxes[row], one.anchors.at(torch.tensor(place)))
            apart = (maps.residuals[index, place] - wanted).tolist()
            apart[6] = math.sin(apart[6])
            sums["box"] += 2 * share * sum(4.5 * d * d if abs(d) < 1 / 9 else abs(d) - 1 / 18 for d in apart)
            halves = maps.directions[index, place].log_softmax(-1)
            half = int((float(boxes[row, 6]) - math.pi / 4) % (2 * math.pi) >= math.pi)
            sums["direction"] -= 0.2 * share * float(halves[half].detach())
    for name, value in sums.items():
        assert found[name].item() == pytest.approx(value, rel=1e-4), name
    assert found["loss"].item() == pytest.approx(sum(sums.values()), rel=1e-4)


def test_half_a_turn_costs_the_box_nothing_and_a_quarter_does():
    offsets, wanted = torch.randn(20, 7), torch.randn(20, 7)
    turned = offsets.clone()
    turned[:, 6] += math.pi
    torch.testing.assert_close(box_loss(turned, wanted), box_loss(offsets, wanted))
    quarter = wanted.clone()
    quarter[:, 6] += math.pi / 2
    torch.testing.assert_close(box_loss(quarter, wanted), torch.full((20,), 1 - 1 / 18))


def test_losses_are_finite_without_objects_and_teach_background_alone():
    maps = draw_maps()
    nothing = [torch.zeros(0, 7)] * 2, [torch.zeros(0, dtype=torch.int64)] * 2
    found = head().loss(maps, *nothing)
    assert found["box"] == found["direction"] == 0
    found["loss"].backward()
    assert torch.isfinite(found["loss"])
    assert (maps.scores.grad > 0).all()
    assert not maps.residuals.grad.any()


def test_half_precision_maps_lose_what_rounding_loses_alone():
    maps, (boxes, labels) = draw_maps(1), street(7, 0)
    halved = Maps(maps.scores.bfloat16(), maps.residuals.bfloat16(), maps.directions.bfloat16())
    wanted = head().loss(maps, [boxes], [labels])
    for name, value in head().loss(halved, [boxes], [labels]).items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-2, atol=0)


def test_a_heading_is_told_from_its_half():
    heading = torch.linspace(-math.pi, math.pi, 101)[:-1]
    for turn in (0, math.pi, -5 * math.pi):
        torch.testing.assert_close(with_direction(heading + turn, direction_bin(heading)), heading, atol=1e-5, rtol=0)


def test_sure_maps_give_the_boxes_back():
    boxes = torch.tensor(
        [[3.0, -2, -1, 3.5, 1.5, 1.6, -3.0], [8, 3, 0.2, 0.9, 0.7, 1.8, 0.2], [3, 4, 0, 2, 0.5, 1.7, 2.0]]
    )
    labels = torch.tensor([0, 1, 2])
    one = head()
    (found,) = one.decode(sure_maps(boxes, labels, one))
    assert len(found) == 3
    order = found.labels.argsort()
    torch.testing.assert_close(found.boxes[order], boxes, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.scores, torch.full((3,), 4.0).sigmoid())


def test_of_overlapping_boxes_the_best_of_any_class_stays_and_limits_hold():
    one, maps = head(), draw_maps(1)
    (found,) = one.decode(maps)
    assert (found.scores[:-1] >= found.scores[1:]).all()
    (few,) = head(suppression=Suppression(after=2)).decode(maps)
    assert few.scores.tolist() == found.scores[:2].tolist()
    (every,) = head(suppression=Suppression(score=1e-6, overlap=1.0, after=10_000)).decode(maps)
    assert len(every) == len(one.anchors)
    (best,) = head(suppression=Suppression(score=1e-6, overlap=1.0, before=7)).decode(maps)
    assert best.scores.tolist() == every.scores[:7].tolist()
    assert not len(head(suppression=Suppression(score=0.9999)).decode(maps)[0])


def test_maps_come_anchor_by_anchor():
    one, x = head(), torch.randn(2, 8, *SHAPE)
    maps = one(x)
    place = (3 * SHAPE[1] + 5) * 6 + 2 * 2 + 1
    for made, conv, width in (
        (maps.scores, one.score, 3),
        (maps.residuals, one.box, 7),
        (maps.directions, one.direction, 2),
    ):
        assert made.shape == (2, len(one.anchors), width)
        channels = slice(5 * width, 6 * width)
        torch.testing.assert_close(made[1, place], conv(x)[1, channels, 3, 5])
    assert float(maps.scores.sigmoid().mean()) < 0.05


def test_the_published_networks_have_their_sizes():
    bev = BEVBackbone(128)
    assert sum(p.numel() for p in bev.parameters()) == 4_429_312
    one = AnchorHead(bev.out_channels, KITTI_CLASSES, RANGE, SHAPE)
    assert sum(p.numel() for p in one.parameters()) == 36_936
    made = BEVBackbone(4, (1, 0, 2), (2, 2, 2), (4, 6, 8), (3, 3, 3))
    assert made(torch.randn(2, 4, 16, 24)).shape == (2, 9, 8, 12)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"the map has \(5, 5\) cells, expected \(10, 12\)"):
        head()(torch.zeros(1, 8, 5, 5))
    with pytest.raises(ValueError, match="boxes has 1 frames, the maps have 2"):
        head().loss(draw_maps(), [torch.zeros(0, 7)], [torch.zeros(0, dtype=torch.int64)])
    with pytest.raises(ConfigError, match="expected 0 < score < 1"):
        Suppression(score=0.0)
    with pytest.raises(ConfigError, match=r"strides is \(1,\) beside depths \(5, 5\)"):
        BEVBackbone(8, strides=(1,))
    with pytest.raises(ConfigError, match="widths is"):
        BEVBackbone(8, widths=(0, 8))
    with pytest.raises(ValueError, match="9 x 8 cells, expected multiples of 2"):
        BEVBackbone(1, (0, 0), (1, 2), (1, 1), (1, 1))(torch.zeros(1, 1, 9, 8))
