"""Boxes of objects in lidar, camera and image coordinates, and the calibration that leads from one to the other.

A lidar box is ``(x, y, z, length, width, height, heading)`` in metres and radians: x forward, y left, z up, the first
three its centre, heading counted from x towards y. A camera box is ``(x, y, z, length, height, width, rotation_y)`` in
rectified camera coordinates: x right, y down, z forward, the first three the middle of its bottom. An image box is
``(left, top, right, bottom)`` in pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# Corners walk around the bottom counter-clockwise seen from above, then around the top.
_CORNERS = ((1, 1, -1), (-1, 1, -1), (-1, -1, -1), (1, -1, -1), (1, 1, 1), (-1, 1, 1), (-1, -1, 1), (1, -1, 1))
# Closer to the image plane than this, a projection says nothing about where the object is.
_NEAREST_DEPTH = 0.1


@dataclass(frozen=True)
class Calibration:
    """What one frame's sensors are to each other.

    ``pixel ~ P2 [R0 [Tr (x, y, z, 1)], 1]`` for a lidar point ``(x, y, z)``.

    Args:
        p2: (3, 4) float64, the left colour camera's projection from rectified coordinates.
        r0: (3, 3) float64, the rotation that rectifies the reference camera.
        tr: (3, 4) float64, from lidar to the reference camera.

    Raises:
        ValueError: A matrix has another shape, or lidar cannot be told from the camera's coordinates.

    Source: Geiger, Lenz, Stiller and Urtasun, Vision meets Robotics: the KITTI dataset, 2013, section IV.
    """

    p2: Tensor
    r0: Tensor
    tr: Tensor

    def __post_init__(self) -> None:
        for name, shape in (("p2", (3, 4)), ("r0", (3, 3)), ("tr", (3, 4))):
            matrix = getattr(self, name)
            if tuple(matrix.shape) != shape:
                raise ValueError(f"{name} has shape {tuple(matrix.shape)}, expected {shape}")
            if not bool(torch.isfinite(matrix).all()):
                raise ValueError(f"{name} holds values that are not finite")
            object.__setattr__(self, name, matrix.detach().to(torch.float64))
        if float(torch.linalg.det(self.r0 @ self.tr[:, :3]).abs()) < 1e-6:
            raise ValueError("r0 and tr make a singular transform: a calibration's rotations are expected")

    def _matrix(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rotation (3, 3) and shift (3,) from lidar to rectified coordinates, as ``like`` is."""
        whole = (self.r0 @ self.tr).to(like)
        return whole[:, :3], whole[:, 3]

    def lidar_to_rect(self, points: Tensor) -> Tensor:
        """Return lidar points (..., 3) in rectified camera coordinates, metres."""
        rotation, shift = self._matrix(points)
        return points @ rotation.T + shift

    def rect_to_lidar(self, points: Tensor) -> Tensor:
        """Return points (..., 3) in rectified camera coordinates as lidar points, metres."""
        whole = self.r0 @ self.tr
        inverse = torch.linalg.inv(whole[:, :3])
        return points @ inverse.T.to(points) - (inverse @ whole[:, 3]).to(points)

    def rect_to_image(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Project points (..., 3) in rectified coordinates.

        Returns:
            Pixels (..., 2) and the depth (...,) that they were divided by, metres; points behind the camera have a
            negative depth and a pixel without meaning.
        """
        projection = self.p2.to(points)
        image = points @ projection[:, :3].T + projection[:, 3]
        depth = image[..., 2]
        return image[..., :2] / torch.where(depth == 0, torch.ones_like(depth), depth)[..., None], depth

    def in_view(self, points: Tensor, size: tuple[int, int]) -> Tensor:
        """Say which lidar points the camera sees.

        Args:
            points: (N, 3 or more), metres; columns after the third are ignored.
            size: (width, height) of the image in pixels.

        Returns:
            (N,) bool.
        """
        pixels, depth = self.rect_to_image(self.lidar_to_rect(points[:, :3].to(torch.float64)))
        inside = (pixels >= 0) & (pixels < torch.tensor(size, dtype=pixels.dtype, device=pixels.device))
        return inside.all(-1) & (depth > 0)


def wrap_angle(angle: Tensor) -> Tensor:
    """Return angles in radians brought to [-pi, pi)."""
    return torch.remainder(angle + math.pi, 2 * math.pi) - math.pi


def camera_to_lidar(boxes: Tensor, calibration: Calibration) -> Tensor:
    """Return camera boxes (..., 7) as lidar boxes (..., 7).

    ``heading = -(pi / 2 + rotation_y)``, not wrapped; the centre lies half the height above the bottom.
    """
    length, height, width = boxes[..., 3], boxes[..., 4], boxes[..., 5]
    centre = calibration.rect_to_lidar(boxes[..., :3])
    heading = -(math.pi / 2 + boxes[..., 6])
    x, y, z = centre.unbind(-1)
    return torch.stack((x, y, z + height / 2, length, width, height, heading), -1)


def lidar_to_camera(boxes: Tensor, calibration: Calibration) -> Tensor:
    """Return lidar boxes (..., 7) as camera boxes (..., 7), rotation_y in [-pi, pi): `camera_to_lidar` undone."""
    length, width, height = boxes[..., 3], boxes[..., 4], boxes[..., 5]
    bottom = torch.stack((boxes[..., 0], boxes[..., 1], boxes[..., 2] - height / 2), -1)
    x, y, z = calibration.lidar_to_rect(bottom).unbind(-1)
    rotation = wrap_angle(-boxes[..., 6] - math.pi / 2)
    return torch.stack((x, y, z, length, height, width, rotation), -1)


def corners(boxes: Tensor) -> Tensor:
    """Return the corners (..., 8, 3) of lidar boxes (..., 7): the bottom counter-clockwise from above, then the top."""
    signs = torch.tensor(_CORNERS, dtype=boxes.dtype, device=boxes.device) / 2
    local = boxes[..., None, 3:6] * signs
    cos, sin = boxes[..., 6, None].cos(), boxes[..., 6, None].sin()
    x = local[..., 0] * cos - local[..., 1] * sin
    y = local[..., 0] * sin + local[..., 1] * cos
    return torch.stack((x, y, local[..., 2]), -1) + boxes[..., None, :3]


def camera_to_upright(boxes: Tensor) -> Tensor:
    """Return camera boxes (..., 7) in the form of lidar boxes (..., 7), x right, y forward and z up.

    No calibration is needed, and overlaps come out the same: a turn about the camera's y, which points down, is the
    opposite turn about z.
    """
    x, y, z, length, height, width, rotation = boxes.unbind(-1)
    return torch.stack((x, z, -y + height / 2, length, width, height, -rotation), -1)


def camera_corners(boxes: Tensor) -> Tensor:
    """Return the corners (..., 8, 3) of camera boxes (..., 7) in rectified coordinates."""
    turned = corners(camera_to_upright(boxes))
    return torch.stack((turned[..., 0], -turned[..., 2], turned[..., 1]), -1)


def camera_to_image(boxes: Tensor, calibration: Calibration, size: tuple[int, int] | None = None) -> Tensor:
    """Return the upright image box (..., 4) around each camera box (..., 7).

    Args:
        boxes: (..., 7), metres and radians.
        calibration: The frame's calibration.
        size: (width, height) in pixels to cut the boxes to; None leaves them whole.

    Returns:
        (..., 4) left, top, right, bottom in pixels. Corners at or behind the image plane are brought before it.
    """
    points = camera_corners(boxes)
    points = torch.cat((points[..., :2], points[..., 2:].clamp(min=_NEAREST_DEPTH)), -1)
    pixels, _ = calibration.rect_to_image(points)
    image = torch.cat((pixels.amin(-2), pixels.amax(-2)), -1)
    if size is None:
        return image
    limits = torch.tensor(size, dtype=image.dtype, device=image.device) - 1
    return torch.minimum(image.clamp(min=0), limits.repeat(2))


def points_in_boxes(points: Tensor, boxes: Tensor, margin: float = 0.0) -> Tensor:
    """Say which points lie in which boxes.

    Args:
        points: (N, 3 or more), metres.
        boxes: (M, 7) lidar boxes.
        margin: Metres by which a box's length and width reach out at each end.

    Returns:
        (N, M) bool; a point on a face is inside.
    """
    offset = points[:, None, :3].to(boxes.dtype) - boxes[None, :, :3]
    cos, sin = boxes[:, 6].cos(), boxes[:, 6].sin()
    along = (offset[..., 0] * cos + offset[..., 1] * sin).abs()
    across = (offset[..., 1] * cos - offset[..., 0] * sin).abs()
    half = boxes[:, 3:6] / 2
    return (along <= half[:, 0] + margin) & (across <= half[:, 1] + margin) & (offset[..., 2].abs() <= half[:, 2])
