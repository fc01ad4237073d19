"""Detectors on a real frame of KITTI: seconds and peak memory of preparing, detecting and a training step."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from scanweave.pointcloud import Detector, create_detector
from scanweave.pointcloud.data import labelled
from scanweave.pointcloud.kitti.frames import KittiFolder
from scanweave.pointcloud.kitti.prepare import collect, describe
from scanweave.pointcloud.sources import KittiSource

from .compare import peak_mebibytes
from .floor import copy_bandwidth, median_seconds

pytestmark = pytest.mark.bench

DETECTORS = ("pointpillars", "second", *(f"lion_{name}" for name in ("mamba", "rwkv", "retnet", "xlstm", "ttt")))
CLASSES = ("Car", "Pedestrian", "Cyclist")
ROUNDS = {"kitti_small": 3, "kitti": 1}

Sample = tuple[list[Tensor], list[Tensor], list[Tensor]]


def draw(root: str) -> Sample:
    """Return the first frame, as a batch of one: points in the camera's view, boxes and labels."""
    points, boxes, labels = labelled(KittiSource(root).read(0), CLASSES)
    return [points], [boxes], [labels]


def train(detector: Detector, sample: Sample) -> None:
    """Take a training step."""
    loss = detector.train().loss(*sample)["loss"]
    detector.zero_grad()
    loss.backward()
    torch.optim.AdamW(detector.parameters(), 1e-4).step()


def detect(detector: Detector, sample: Sample) -> None:
    """Detect in the frame."""
    detector.eval().detect(sample[0])


def prepare_frame(folder: KittiFolder) -> None:
    """Describe a frame and collect its objects' points."""
    describe(folder, folder.frames[0])
    collect(folder, folder.frames[:1])


_SETUP = """
import torch
from tests.benchmarks.test_detect3d import *
torch.set_num_threads({threads})
sample = draw({root!r})
torch.manual_seed(0)
detector = create_detector({name!r})
detect(detector, ([sample[0][0][:50]], sample[1], sample[2]))
"""
_PREPARE = """
from tests.benchmarks.test_detect3d import *
folder = KittiFolder({root!r})
"""


def test_frames(data_path) -> None:
    root = str(data_path("kitti/training").parent)
    sample = draw(root)
    folder = KittiFolder(root)
    threads = torch.get_num_threads()
    print(f"\na frame of {len(sample[0][0])} points in view, {threads} threads on {os.cpu_count()} processors, batch 1")
    print("floor: reading the weights once; a training step reads and writes them and their moments, 11 times")
    print(f"{'':28}{'detect s':>10}{'x floor':>9}{'MiB':>8}{'step s':>10}{'x floor':>9}{'MiB':>8}{'weights':>10}")
    seconds = median_seconds(lambda: prepare_frame(folder), rounds=3)
    reading = Path(root, "training", "velodyne", f"{folder.frames[0]}.bin").stat().st_size
    memory = peak_mebibytes(_PREPARE.format(root=root), "prepare_frame(folder)")
    # The copy's bandwidth counts what is read and what is written.
    print(f"{'prepare':28}{seconds:10.3f}{seconds / (2 * reading / copy_bandwidth(reading)):9.0f}{memory:8.0f}")
    took: dict[str, float] = {}
    for kind, rounds in ROUNDS.items():
        for family in DETECTORS:
            name = f"{family}_{kind}"
            torch.manual_seed(0)
            detector = create_detector(name)
            weights = 4 * sum(p.numel() for p in detector.parameters())
            floor = weights / copy_bandwidth(weights)
            times, peaks = [], []
            for what in (detect, train):
                times.append(median_seconds(lambda d=detector, w=what: w(d, sample), rounds=rounds))
                setup = _SETUP.format(root=root, name=name, threads=threads)
                peaks.append(peak_mebibytes(setup, f"{what.__name__}(detector, sample)"))
            print(
                f"{name:28}{times[0]:10.3f}{times[0] / floor:9.0f}{peaks[0]:8.0f}"
                f"{times[1]:10.3f}{times[1] / (11 * floor):9.0f}{peaks[1]:8.0f}{weights / 4e6:8.2f} M"
            )
            took[name] = times[1]
    for family in DETECTORS:
        assert took[f"{family}_kitti_small"] < took[f"{family}_kitti"], family
