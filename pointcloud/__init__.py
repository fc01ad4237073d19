"""Detection in point clouds."""

from .boxes import (
    Calibration,
    camera_corners,
    camera_to_image,
    camera_to_lidar,
    camera_to_upright,
    corners,
    lidar_to_camera,
    points_in_boxes,
    wrap_angle,
)
from .nms import rotated_nms
from .overlap import aligned_iou, box_iou, overlap_area

__all__ = [
    "Calibration",
    "aligned_iou",
    "box_iou",
    "camera_corners",
    "camera_to_image",
    "camera_to_lidar",
    "camera_to_upright",
    "corners",
    "lidar_to_camera",
    "overlap_area",
    "points_in_boxes",
    "rotated_nms",
    "wrap_angle",
]
