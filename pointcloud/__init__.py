"""Detection in point clouds."""

from .anchors import KITTI_CLASSES, AnchorClass
from .average_precision import BoxAP
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
from .data import Detect3dData
from .detector import Detector
from .head import Detections, Suppression
from .lion import LION
from .nms import rotated_nms
from .overlap import aligned_iou, box_iou, overlap_area
from .presets import create_detector, list_detectors
from .second import SECOND
from .task import Detection3d

__all__ = [
    "KITTI_CLASSES",
    "LION",
    "SECOND",
    "AnchorClass",
    "BoxAP",
    "Calibration",
    "Detect3dData",
    "Detection3d",
    "Detections",
    "Detector",
    "Suppression",
    "aligned_iou",
    "box_iou",
    "camera_corners",
    "camera_to_image",
    "camera_to_lidar",
    "camera_to_upright",
    "corners",
    "create_detector",
    "lidar_to_camera",
    "list_detectors",
    "overlap_area",
    "points_in_boxes",
    "rotated_nms",
    "wrap_angle",
]
