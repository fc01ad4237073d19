"""KITTI: its files, its evaluation, and what training needs prepared."""

from .evaluate import evaluate, evaluate_folder
from .objects import Objects, read_objects, write_detections

__all__ = [
    "Objects",
    "evaluate",
    "evaluate_folder",
    "read_objects",
    "write_detections",
]
