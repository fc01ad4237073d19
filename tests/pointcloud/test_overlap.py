"""Overlaps of rotated boxes beside closed forms, sampling, shapely and torchvision; their suppression."""

from __future__ import annotations

import math

import pytest
import torch
from torchvision.ops import box_iou as upright_iou
from torchvision.ops import nms as upright_nms

from scanweave.pointcloud import aligned_iou, box_iou, overlap_area, rotated_nms

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU"))]


def random_boxes(count: int, seed: int, spread: float = 4.0) -> torch.Tensor:
    made = torch.Generator().manual_seed(seed)
    boxes = torch.rand(count, 7, generator=made, dtype=torch.float64)
    low = torch.tensor([-spread, -spread, -1, 0.2, 0.2, 0.2, -math.pi], dtype=torch.float64)
    high = torch.tensor([spread, spread, 1, 5, 3, 2, math.pi], dtype=torch.float64)
    return low + (high - low) * boxes


def box(*values: float, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.tensor([values], dtype=dtype)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("space", ["bev", "3d"])
def test_identical_boxes_overlap_wholly_at_any_place_and_heading(device, dtype, tolerance, space):
    boxes = random_boxes(2000, 0, spread=70.0)
    boxes[:8, 6] = torch.arange(8) * math.pi / 4
    boxes = boxes.to(device, dtype)
    turned = boxes.clone()
    turned[:, 6] += math.pi
    for other in (boxes, turned):
        iou = aligned_iou(boxes, other, space)
        assert iou.max() <= 1
        assert (1 - iou).max() < tolerance


@pytest.mark.parametrize(
    ("a", "b", "bev", "space"),
    [
        ((0, 0, 0, 2, 2, 2, 0), (2, 0, 0, 2, 2, 2, 0), 0, 0),  # a side touches
        ((0, 0, 0, 2, 2, 2, 0), (2, 2, 0, 2, 2, 2, 0), 0, 0),  # a corner touches
        ((0, 0, 0, 2, 2, 2, 0), (0, 0, 2, 2, 2, 2, 0), 1, 0),  # stacked
        ((0, 0, 0, 2, 2, 2, 0), (1, 0, 0, 2, 2, 2, 0), 1 / 3, 1 / 3),
        ((0, 0, 0, 2, 2, 2, 0), (0, 0, 1, 2, 2, 2, math.pi / 2), 1, 1 / 3),
        ((0, 0, 0, 4, 4, 2, 0.3), (0, 0, 0, 2, 1, 1, -1.1), 1 / 8, 1 / 16),  # one inside the other
        ((0, 0, 0, 2, 2, 2, 0), (0, 0, 0, 2, 2, 2, math.pi / 4), math.sqrt(0.5), math.sqrt(0.5)),  # an octagon
        ((0, 0, 0, 4, 2, 1, 0), (0, 0, 0, 4, 2, 1, math.pi / 2), 1 / 3, 1 / 3),  # a cross
        ((0, 0, 0, 0, 0, 0, 0), (0, 0, 0, 0, 0, 0, 0), 0, 0),  # no extent
        ((0, 0, 0, 2, 2, 2, 0), (0, 0, 0, 0, 2, 2, 1), 0, 0),
    ],
)
def test_closed_forms(a, b, bev, space):
    for first, second in ((a, b), (b, a)):
        assert float(aligned_iou(box(*first), box(*second), "bev")) == pytest.approx(bev, abs=1e-12)
        assert float(aligned_iou(box(*first), box(*second), "3d")) == pytest.approx(space, abs=1e-12)


def test_upright_boxes_are_torchvisions():
    boxes = random_boxes(80, 3)
    boxes[:, 6] = 0
    sides = torch.cat((boxes[:, :2] - boxes[:, 3:5] / 2, boxes[:, :2] + boxes[:, 3:5] / 2), 1)
    torch.testing.assert_close(box_iou(boxes, boxes, "bev"), upright_iou(sides, sides))


def test_areas_are_those_that_counting_a_fine_grid_gives():
    a, b = random_boxes(1, 4)[0], random_boxes(1, 5)[0]
    a[:2] = b[:2] + 0.4
    b[3:5] += 1
    steps = torch.linspace(-0.5, 0.5, 1401, dtype=torch.float64)
    along, across = torch.meshgrid(steps, steps, indexing="ij")
    x = a[0] + along * a[3] * a[6].cos() - across * a[4] * a[6].sin() - b[0]
    y = a[1] + along * a[3] * a[6].sin() + across * a[4] * a[6].cos() - b[1]
    inside = ((x * b[6].cos() + y * b[6].sin()).abs() <= b[3] / 2) & (
        (y * b[6].cos() - x * b[6].sin()).abs() <= b[4] / 2
    )
    flat = [0, 1, 3, 4, 6]
    area = float(overlap_area(a[flat], b[flat]))
    assert area == pytest.approx(float(inside.double().mean() * a[3] * a[4]), rel=3e-3)
    assert area > 0.1


def test_shapely_agrees():
    affinity = pytest.importorskip("shapely.affinity", reason="shapely is not installed")
    geometry = pytest.importorskip("shapely.geometry")

    def polygon(x, y, length, width, heading):
        whole = geometry.box(-length / 2, -width / 2, length / 2, width / 2)
        return affinity.translate(affinity.rotate(whole, heading, origin=(0, 0), use_radians=True), x, y)

    flat = [0, 1, 3, 4, 6]
    a, b = random_boxes(500, 6)[:, flat], random_boxes(500, 7)[:, flat]
    a[100:200] = b[100:200]
    a[200:300, 4] = b[200:300, 4]
    wanted = [polygon(*p).intersection(polygon(*q)).area for p, q in zip(a.tolist(), b.tolist(), strict=True)]
    torch.testing.assert_close(overlap_area(a, b), torch.tensor(wanted, dtype=torch.float64), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_hard_boxes_stay_finite_within_bounds_and_symmetric(dtype):
    boxes = random_boxes(60, 8, spread=1.0).to(dtype)
    hard = boxes.clone()
    hard[:10, 3:6] = 0
    hard[10:20, 3] = 1e-7
    hard[20:30, 6] = torch.tensor([math.pi, -math.pi, math.pi / 2, 0, -0.0] * 2)
    hard[30:40, :2] = hard[0, :2]
    hard[40:50] = hard[41]
    hard[50:, :2] += 1e4
    for space in ("bev", "3d"):
        iou = box_iou(hard, hard, space)
        assert torch.isfinite(iou).all()
        assert iou.min() >= 0
        assert iou.max() <= 1
        # A needle's area is smaller than float32's rounding of the boxes around it.
        stout = torch.cat((iou[:10], iou[20:]))
        stout = torch.cat((stout[:, :10], stout[:, 20:]), 1)
        torch.testing.assert_close(stout, stout.T, atol=1e-4 if dtype == torch.float32 else 1e-9, rtol=0)


def test_all_pairs_are_the_pairs_one_by_one_and_empty_sets_work():
    a, b = random_boxes(20, 9), random_boxes(30, 10)
    torch.testing.assert_close(box_iou(a, b), aligned_iou(a[:, None], b[None]))
    assert box_iou(a[:0], b).shape == (0, 30)
    assert box_iou(a, b[:0]).shape == (20, 0)


@pytest.mark.parametrize("chunk", [1, 64, 1 << 20])
def test_looking_only_at_boxes_near_along_x_changes_nothing(monkeypatch, chunk):
    a, b = random_boxes(20, 9, spread=12.0), random_boxes(30, 10, spread=12.0)
    a[3] = b[4] = math.nan
    b[7, :5] = a[5, :5]
    wanted = box_iou(a, b)
    assert 0 < (wanted > 0).double().mean() < 0.3
    monkeypatch.setattr("scanweave.pointcloud.overlap._FEW", -1)
    monkeypatch.setattr("scanweave.pointcloud.overlap._CHUNK", chunk)
    # Equal but for the last digit: where a pair stands among the others changes how its numbers are rounded.
    torch.testing.assert_close(box_iou(a, b), wanted, rtol=1e-13, atol=1e-13)
    assert box_iou(a[:0], b).shape == (0, 30)


def test_gradients_are_those_of_differences_and_finite_on_identical_boxes():
    a, b = random_boxes(6, 11, spread=1.0).requires_grad_(), random_boxes(6, 12, spread=1.0).requires_grad_()
    assert torch.autograd.gradcheck(aligned_iou, (a, b))
    same = a.detach().clone().requires_grad_()
    aligned_iou(same, a).sum().backward()
    assert torch.isfinite(same.grad).all()
    assert torch.isfinite(a.grad).all()


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="space is 'BEV'"):
        aligned_iou(random_boxes(1, 0), random_boxes(1, 0), "BEV")
    with pytest.raises(ValueError, match=r"b has shape \(1, 6\)"):
        aligned_iou(random_boxes(1, 0), random_boxes(1, 0)[:, :6])


def greedy(boxes: torch.Tensor, scores: torch.Tensor, threshold: float) -> list[int]:
    kept: list[int] = []
    for index in scores.argsort(descending=True, stable=True).tolist():
        if not kept or float(box_iou(boxes[index : index + 1], boxes[kept], "bev").max()) <= threshold:
            kept.append(index)
    return kept


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("threshold", [0.01, 0.3, 0.7])
def test_suppression_is_the_greedy_loop(device, threshold):
    boxes = random_boxes(120, 13, spread=6.0)
    scores = torch.rand(120, generator=torch.Generator().manual_seed(0)).mul(20).round()  # many ties
    kept = rotated_nms(boxes.to(device), scores.to(device), threshold)
    assert kept.tolist() == greedy(boxes, scores, threshold)
    assert rotated_nms(boxes.to(device), scores.to(device), threshold, after=3).tolist() == kept[:3].tolist()
    best = scores.argsort(descending=True, stable=True)[:10]
    first = rotated_nms(boxes.to(device), scores.to(device), threshold, before=10).cpu()
    assert first.tolist() == best[greedy(boxes[best], scores[best], threshold)].tolist()


def test_suppression_of_upright_boxes_is_torchvisions():
    boxes = random_boxes(300, 14, spread=10.0)
    boxes[:, 6] = 0
    sides = torch.cat((boxes[:, :2] - boxes[:, 3:5] / 2, boxes[:, :2] + boxes[:, 3:5] / 2), 1)
    scores = torch.rand(300, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert torch.equal(rotated_nms(boxes, scores, 0.3), upright_nms(sides, scores, 0.3))


def test_a_long_chain_of_overlaps_keeps_every_other_box():
    boxes = torch.zeros(41, 7)
    boxes[:, 0] = torch.arange(41) * 0.5
    boxes[:, 3:6] = 1
    assert rotated_nms(boxes, -torch.arange(41.0), 0.3).tolist() == list(range(0, 41, 2))


def test_suppression_of_nothing_and_of_what_is_not_finite():
    assert rotated_nms(torch.zeros(0, 7), torch.zeros(0), 0.5).shape == (0,)
    with pytest.raises(ValueError, match="not finite"):
        rotated_nms(torch.full((1, 7), math.nan), torch.zeros(1), 0.5)
    with pytest.raises(ValueError, match="scores has shape"):
        rotated_nms(torch.zeros(2, 7), torch.zeros(1), 0.5)
