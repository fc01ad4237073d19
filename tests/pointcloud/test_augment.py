"""Random changes of frames: points stay in their boxes, and what is put in finds room."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from scanweave.core import DataError
from scanweave.pointcloud import box_iou, points_in_boxes, wrap_angle
from scanweave.pointcloud.augment import Database, FrameAugmentation
from scanweave.pointcloud.data import Detect3dData
from scanweave.pointcloud.kitti import make_scene, prepare, write_scenes


def one_box() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    box = torch.tensor([[10.0, 2.0, -0.5, 4.0, 1.8, 1.5, 0.3]])
    inside = (torch.rand(40, 3) - 0.5) * 0.9 * box[:, 3:6]
    cos, sin = box[0, 6].cos(), box[0, 6].sin()
    turned = torch.stack(
        (inside[:, 0] * cos - inside[:, 1] * sin, inside[:, 0] * sin + inside[:, 1] * cos, inside[:, 2]), 1
    )
    points = torch.cat((turned + box[:, :3], torch.rand(40, 1)), 1)
    return torch.cat((points, torch.tensor([[30.0, -9.0, 0.0, 0.5]]))), box, torch.tensor([1])


def test_boxes_move_with_their_points() -> None:
    torch.manual_seed(0)
    points, box, labels = one_box()
    change = FrameAugmentation({})
    seen = []
    for _ in range(20):
        moved, boxes, kept = change.apply(points, box, labels, None)
        assert points_in_boxes(moved, boxes)[:, 0].tolist() == [True] * 40 + [False]
        assert torch.equal(kept, labels)
        assert torch.equal(moved[:, 3], points[:, 3])
        factor = boxes[0, 3] / box[0, 3]
        assert 0.95 <= factor <= 1.05
        # Mirrored or not, the heading is the old one turned by at most 45 degrees.
        assert min(abs(boxes[0, 6] - h) for h in (0.3, -0.3)) <= math.pi / 4 + 1e-6
        seen.append(boxes)
    assert torch.cat(seen).std(0)[[0, 1, 3, 6]].min() > 0.01
    assert torch.equal(box, one_box()[1])  # what was given is as it was


def test_no_chance_and_no_range_change_nothing() -> None:
    points, box, labels = one_box()
    same = FrameAugmentation({}, flip=0.0, rotation=0.0, scale=(1.0, 1.0))
    moved, boxes, _ = same.apply(points, box, labels, None)
    torch.testing.assert_close(moved, points)
    torch.testing.assert_close(boxes, box)


def test_objects_are_put_in_where_there_is_room() -> None:
    torch.manual_seed(1)
    frames = []
    for seed in range(4):
        scene = make_scene(seed, azimuths=256)
        labels = torch.tensor([("Car", "Pedestrian", "Cyclist").index(name) for name in scene.objects.names])
        frames.append((scene.points, scene.boxes.float(), labels))
    database = Database.collect(frames, least=5)
    assert min(len(own) for own in database.points) >= 5
    assert len(database.points) == len(database.boxes) == len(database.labels)
    still = FrameAugmentation({0: 8, 1: 3}, flip=0.0, rotation=0.0, scale=(1.0, 1.0))
    points, boxes, labels = still.apply(*frames[0], database)
    assert len(boxes) > len(frames[0][1])
    assert torch.equal(boxes[: len(frames[0][1])], frames[0][1])
    assert (labels == 2).sum() == (frames[0][2] == 2).sum()
    overlaps = box_iou(boxes, boxes, "bev") - torch.eye(len(boxes))
    assert overlaps.max() < 1e-6
    added = points_in_boxes(points, boxes[len(frames[0][1]) :], 0.011)
    assert added.sum(0).min() >= 5


def test_an_empty_frame_and_an_empty_database() -> None:
    empty = torch.zeros(0, 4), torch.zeros(0, 7), torch.zeros(0, dtype=torch.int64)
    database = Database.collect([empty], least=5)
    points, boxes, labels = FrameAugmentation({0: 5}).apply(*empty, database)
    assert (len(points), len(boxes), len(labels)) == (0, 0, 0)


def test_the_prepared_database_is_the_collected_one(tmp_path: Path) -> None:
    root = write_scenes(tmp_path / "kitti", 8, azimuths=128)
    prepare(root, root / "prepared")
    classes = ("Pedestrian", "Car")
    found = Database.read(root / "prepared" / "database.npz", classes, 5)
    frames = []
    for seed in range(6):
        scene = make_scene(seed, azimuths=128)
        rows = [i for i, name in enumerate(scene.objects.names) if name in classes]
        frames.append((scene.points, scene.boxes.float()[rows], [classes.index(scene.objects.names[i]) for i in rows]))
    made = Database.collect([(p, b, torch.tensor(k, dtype=torch.int64)) for p, b, k in frames], 5)
    # Labels on disk have two decimals.
    assert found.labels.tolist() == made.labels.tolist()
    differences = found.boxes - made.boxes
    differences[:, 6] = wrap_angle(differences[:, 6])
    assert differences.abs().max() < 2e-2
    (root / "prepared" / "database.npz").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"database\.npz: cannot be read as a database of objects"):
        Database.read(root / "prepared" / "database.npz", classes, 5)
    (root / "prepared" / "database.npz").unlink()
    with pytest.raises(DataError, match=r"holds no database\.npz; write one: scanweave detect3d prepare"):
        Detect3dData(str(root), prepared=str(root / "prepared")).setup()
