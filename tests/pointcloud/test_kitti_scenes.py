"""Made-up scenes: what rays meet, what labels say of it, and the picture from above."""

from __future__ import annotations

import math

import pytest
import torch

from scanweave.pointcloud import points_in_boxes
from scanweave.pointcloud.kitti import (
    KittiFolder,
    draw_frame,
    evaluate,
    make_scene,
    prepare,
    read_image_size,
    write_scenes,
)
from scanweave.pointcloud.kitti.scenes import cast_rays


@pytest.fixture(scope="module")
def scene():
    return make_scene(3, azimuths=512)


def test_rays_meet_the_near_face_of_turned_boxes_and_miss_what_lies_behind():
    boxes = torch.tensor([[10.0, 0, 0, 4, 2, 2, 0], [10, 0, 0, 4, 2, 2, math.pi / 2], [-10, 0, 0, 4, 2, 2, 0]]).double()
    slope = torch.tensor([1.0, 0.2, 0.0], dtype=torch.float64)
    directions = torch.stack((torch.tensor([1.0, 0, 0], dtype=torch.float64), slope / slope.norm()))
    met = cast_rays(directions, boxes)
    assert met[0].tolist() == pytest.approx([8, 9, math.inf])
    assert met[1].tolist() == pytest.approx([math.inf, 9 * math.sqrt(1.04), math.inf])


def test_every_label_has_points_within_its_box_and_lies_in_the_image(scene):
    assert len(scene.objects) >= 5
    wide = scene.boxes.clone()
    wide[:, 3:6] += 0.2
    counts = points_in_boxes(scene.points, wide).sum(0)
    assert counts.min() >= 1
    left, top, right, bottom = scene.objects.image_boxes.unbind(-1)
    assert (left < right).all()
    assert (top < bottom).all()
    assert left.min() >= 0
    assert right.max() <= scene.size[0] - 1


def test_the_ground_is_flat_and_far_returns_are_rarer_than_rays(scene):
    distance = scene.points[:, :3].norm(dim=1)
    assert distance.max() < 80.2
    assert scene.points[:, 2].min() > -1.85
    assert (scene.points[:, 2] < -1.6).float().mean() > 0.3
    assert len(scene.points) < 64 * 512


def test_labels_hold_by_the_evaluation_and_occlusion_costs_difficulty(scene):
    assert (scene.objects.difficulty()[scene.objects["occluded"] == 2] != 0).all()
    found = evaluate([(scene.objects, scene.objects)])["Car"]["3d"]["R40"]
    cars = torch.tensor([name == "Car" for name in scene.objects.names])
    counted = [int((scene.objects.within(level) & cars).sum()) for level in range(3)]
    assert found == pytest.approx([(count - 1) / 40 * 100 for count in counted])


def test_the_same_seed_gives_the_same_frame_and_no_objects_a_bare_street():
    first, second = (make_scene(5, objects=4, azimuths=64) for _ in range(2))
    assert torch.equal(first.points, second.points)
    assert not torch.equal(first.points, make_scene(6, objects=4, azimuths=64).points[: len(first.points)])
    assert len(make_scene(5, objects=0, azimuths=64).objects) == 0


def test_written_scenes_are_a_tree_that_prepares(tmp_path):
    root = write_scenes(tmp_path / "kitti", 4, seed=1, azimuths=128)
    folder = KittiFolder(root)
    made = make_scene(1, azimuths=128)
    assert torch.equal(folder.points("000000"), made.points)
    torch.testing.assert_close(folder.objects("000000").values, made.objects.values, atol=6e-3, rtol=0)
    torch.testing.assert_close(folder.calibration("000000").p2, made.calibration.p2)
    summary = prepare(root, tmp_path / "out")
    assert summary.frames == {"train": 3, "val": 1}
    assert summary.stored["Car"] > 0


def test_the_picture_is_written_without_a_display(scene, tmp_path):
    path = draw_frame(tmp_path / "frame.png", scene.points, scene.boxes, scene.boxes[:1], title="A street")
    assert read_image_size(path) == (1350, 1440)
    draw_frame(tmp_path / "empty.png", scene.points[:0], scene.boxes[:0])
    assert read_image_size(tmp_path / "empty.png") == (1350, 1440)
