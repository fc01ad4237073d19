"""KITTI: its files, its evaluation, and what training needs prepared."""

from .evaluate import evaluate, evaluate_folder
from .frames import KittiFolder, read_calibration, read_image_size, read_points
from .metric import KittiAP
from .objects import Objects, read_objects, write_detections
from .prepare import Prepared, prepare

__all__ = [
    "KittiAP",
    "KittiFolder",
    "Objects",
    "Prepared",
    "evaluate",
    "evaluate_folder",
    "prepare",
    "read_calibration",
    "read_image_size",
    "read_objects",
    "read_points",
    "write_detections",
]
