"""KITTI: its files, its evaluation, and what training needs prepared."""

from .evaluate import evaluate, evaluate_folder
from .frames import KittiFolder, read_calibration, read_image_size, read_points
from .metric import KittiAP
from .objects import Objects, read_objects, write_detections, write_labels
from .prepare import Prepared, prepare
from .scenes import Scene, make_scene, write_scenes
from .view import draw_frame, draw_on_image

__all__ = [
    "KittiAP",
    "KittiFolder",
    "Objects",
    "Prepared",
    "Scene",
    "draw_frame",
    "draw_on_image",
    "evaluate",
    "evaluate_folder",
    "make_scene",
    "prepare",
    "read_calibration",
    "read_image_size",
    "read_objects",
    "read_points",
    "write_detections",
    "write_labels",
    "write_scenes",
]
