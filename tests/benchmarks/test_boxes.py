"""Overlaps of rotated boxes and their suppression beside torchvision's and shapely's, and beside a copy."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision import ops

from scanweave.pointcloud import box_iou, corners, rotated_nms

from ..installed import import_peer
from .compare import compare
from .floor import copy_bandwidth

pytestmark = pytest.mark.bench

THRESHOLD = 0.01
Overlap = Callable[[Tensor, Tensor], Tensor]


def _draw(count: int, seed: int) -> Tensor:
    """Return boxes as a detector gives them in a street of 70 m by 80 m: several around each of the same objects."""
    made = torch.Generator().manual_seed(0)
    low, high = torch.tensor([0, -40, -1.5, 0.6, 0.5, 1.4, -math.pi]), torch.tensor([70, 40, 0, 4.5, 2, 2, math.pi])
    objects = low + (high - low) * torch.rand(max(1, count // 8), 7, generator=made)
    made.manual_seed(seed)
    spread = torch.tensor([0.4, 0.4, 0.1, 0.1, 0.1, 0.1, 0.2])
    picked = objects[torch.randint(0, len(objects), (count,), generator=made)]
    return picked + spread * (torch.rand(count, 7, generator=made) - 0.5)


def _torchvision(a: Tensor, b: Tensor) -> Tensor:
    if "fmt" not in inspect.signature(ops.box_iou).parameters:
        pytest.skip("this torchvision's box_iou takes no rotated boxes")

    def described(boxes: Tensor) -> Tensor:
        """Its angles are degrees, counted the other way round."""
        return torch.cat((boxes[:, [0, 1, 3, 4]], -boxes[:, 6:].rad2deg()), 1)

    return ops.box_iou(described(a), described(b), fmt="cxcywhr")


def _shapely(a: Tensor, b: Tensor) -> Tensor:
    """Polygon beside polygon, all pairs in one call."""
    shapely = import_peer("shapely")
    outlines = [shapely.polygons(_outline(boxes)) for boxes in (a, b)]
    shared = shapely.area(shapely.intersection(outlines[0][:, None], outlines[1][None]))
    sizes = [shapely.area(outline) for outline in outlines]
    return torch.from_numpy(shared / (sizes[0][:, None] + sizes[1] - shared))


def _outline(boxes: Tensor) -> np.ndarray:
    return corners(boxes.double())[:, :4, :2].numpy()


def _floor(boxes: int) -> float:
    """Return the seconds for reading the boxes and writing every pair's overlap, float32."""
    moved = 4 * (2 * 7 * boxes + boxes * boxes)
    return moved / copy_bandwidth(max(moved, 1 << 16))


@torch.no_grad()
@pytest.mark.parametrize("count", [50, 400])
def test_overlaps_of_all_pairs(count: int, bench_out: Path | None) -> None:
    a, b = _draw(count, 0), _draw(count, 1)
    candidates: dict[str, Overlap] = {
        "scanweave": lambda a, b: box_iou(a, b, "bev"),
        "torchvision": _torchvision,
        "shapely": _shapely,
    }
    exact = _shapely(a, b)
    for name, overlap in candidates.items():
        found = (overlap(a, b).double() - exact).abs().max().item()
        print(f"{name}: largest error {found:.1e}")
        assert found < 1e-4, name
    calls = {name: lambda overlap=overlap: overlap(a, b) for name, overlap in candidates.items()}
    found = compare(f"overlaps of {count} x {count} boxes", calls, floor_seconds=_floor(count), out=bench_out, rounds=7)
    # Among few boxes the calls themselves take the time.
    assert found["scanweave"] < found["torchvision" if count > 50 else "shapely"]


def _greedy(overlap: Overlap, boxes: Tensor, scores: Tensor) -> Tensor:
    """Keep the best of what overlaps, one box after the other, by a table of all overlaps."""
    order = scores.argsort(descending=True, stable=True)
    clash = (overlap(boxes[order], boxes[order]) > THRESHOLD).numpy()
    gone, kept = torch.zeros(len(order), dtype=torch.bool).numpy(), []
    for place in range(len(order)):
        if not gone[place]:
            kept.append(place)
            gone |= clash[place]
    return order[kept]


@torch.no_grad()
@pytest.mark.parametrize("count", [500, 4096])
def test_suppression(count: int, bench_out: Path | None) -> None:
    boxes = _draw(count, 2)
    scores = torch.rand(count, generator=torch.Generator().manual_seed(3))
    calls: dict[str, Callable[[], Tensor]] = {
        "scanweave": lambda: rotated_nms(boxes, scores, THRESHOLD),
        "torchvision + loop": lambda: _greedy(_torchvision, boxes, scores),
    }
    if count <= 500:
        calls["shapely + loop"] = lambda: _greedy(_shapely, boxes, scores)
    kept = {name: set(call().tolist()) for name, call in calls.items()}
    for name, found in kept.items():
        # An overlap at the threshold may round to either side of it, and take others with it.
        assert len(found ^ kept["scanweave"]) <= len(kept["scanweave"]) // 50, name
    found = compare(
        f"suppression of {count} boxes",
        calls,
        floor_seconds=_floor(count),
        out=bench_out,
        rounds=5 if count < 4096 else 1,
    )
    assert found["scanweave"] < found["torchvision + loop"]
