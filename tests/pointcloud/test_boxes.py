"""Boxes in lidar, camera and image coordinates, and the points in them."""

from __future__ import annotations

import math

import pytest
import torch

from scanweave.pointcloud import (
    Calibration,
    camera_corners,
    camera_to_image,
    camera_to_lidar,
    corners,
    lidar_to_camera,
    points_in_boxes,
    wrap_angle,
)

# A camera that looks along lidar's x: right is -y, down is -z.
TURN = torch.tensor([[0.0, -1.0, 0.0], [0.0, 0.0, -1.0], [1.0, 0.0, 0.0]], dtype=torch.float64)


def calibration(tilt: float = 0.0) -> Calibration:
    p2 = torch.tensor([[700.0, 0, 600, 45], [0, 700, 180, -0.3], [0, 0, 1, 0.005]], dtype=torch.float64)
    cos, sin = math.cos(tilt), math.sin(tilt)
    r0 = torch.tensor([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]], dtype=torch.float64)
    return Calibration(p2, r0, torch.cat((TURN, torch.tensor([[0.0], [-0.08], [-0.27]], dtype=torch.float64)), 1))


def boxes(count: int = 50) -> torch.Tensor:
    torch.manual_seed(0)
    low = torch.tensor([5, -20, -2, 0.3, 0.3, 0.3, -math.pi], dtype=torch.float64)
    high = torch.tensor([60, 20, 1, 5, 3, 3, math.pi], dtype=torch.float64)
    return low + (high - low) * torch.rand(count, 7, dtype=torch.float64)


def test_lidar_and_camera_boxes_are_each_other_undone():
    lidar = boxes()
    back = camera_to_lidar(lidar_to_camera(lidar, calibration(0.01)), calibration(0.01))
    torch.testing.assert_close(back[:, :6], lidar[:, :6])
    torch.testing.assert_close(wrap_angle(back[:, 6] - lidar[:, 6]), torch.zeros(50, dtype=torch.float64))


def test_the_two_kinds_of_boxes_have_the_same_corners():
    lidar = boxes()
    at_once = calibration().lidar_to_rect(corners(lidar))
    through = camera_corners(lidar_to_camera(lidar, calibration()))
    nearest = torch.cdist(at_once, through).amin(-1)
    assert nearest.max() < 1e-9


def test_a_box_straight_ahead_has_the_image_box_of_its_near_face():
    camera = torch.tensor([[0.0, 1.0, 10.0, 4.0, 2.0, 2.0, -math.pi / 2]], dtype=torch.float64)
    rig = calibration()
    left, top, right, bottom = camera_to_image(camera, rig)[0].tolist()
    depth = 8.0 + 0.005
    assert left == pytest.approx((600 * 8 - 700 + 45) / depth)
    assert right - left == pytest.approx(1400 / depth)
    assert bottom - top == pytest.approx(1400 / depth)
    cut = camera_to_image(camera * torch.tensor([1, 1, 0.21, 1, 1, 1, 1]), rig, size=(1242, 375))[0]
    assert cut.tolist() == [0.0, 0.0, 1241.0, 374.0]


def test_points_on_faces_are_inside_and_the_margin_widens_the_sides_only():
    box = torch.tensor([[1.0, 2.0, 3.0, 4.0, 2.0, 2.0, math.pi / 2]], dtype=torch.float64)
    points = torch.tensor(
        [[1, 2, 3], [1, 3.99, 3], [1, 4.005, 3], [2.005, 2, 3], [1, 2, 4], [1, 2, 4.005]], dtype=torch.float64
    )
    assert points_in_boxes(points, box)[:, 0].tolist() == [True, True, False, False, True, False]
    assert points_in_boxes(points, box, margin=0.01)[:, 0].tolist() == [True, True, True, True, True, False]
    assert points_in_boxes(points[:0], box).shape == (0, 1)
    assert points_in_boxes(points, box[:0]).shape == (6, 0)


def test_random_points_in_a_box_are_those_between_its_faces():
    torch.manual_seed(1)
    box = boxes(1)
    local = torch.rand(2000, 3, dtype=torch.float64) * 2 - 1
    frame = corners(box)[0]
    axes = torch.stack((frame[0] - frame[1], frame[0] - frame[3], frame[4] - frame[0])) / 2
    points = box[0, :3] + (1.3 * local) @ axes
    assert torch.equal(points_in_boxes(points, box)[:, 0], ((1.3 * local).abs() <= 1).all(1))


def test_a_point_behind_the_camera_is_not_in_view():
    points = torch.tensor([[10.0, 0.0, 0.0], [-10.0, 0.0, 0.0], [10.0, 30.0, 0.0]])
    assert calibration().in_view(points, (1242, 375)).tolist() == [True, False, False]


@pytest.mark.parametrize(
    ("p2", "r0", "message"),
    [
        (torch.zeros(3, 3), torch.eye(3), "p2 has shape"),
        (torch.zeros(3, 4), torch.zeros(3, 3), "singular"),
        (torch.full((3, 4), math.nan), torch.eye(3), "not finite"),
    ],
)
def test_calibrations_that_cannot_be_are_refused(p2, r0, message):
    with pytest.raises(ValueError, match=message):
        Calibration(p2, r0, torch.cat((TURN.float(), torch.zeros(3, 1)), 1).double())
