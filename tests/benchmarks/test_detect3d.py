"""Detectors on a real frame of KITTI: seconds and peak memory of preparing, detecting and a training step."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
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


@pytest.fixture
def root(data_path) -> str:
    """Return KITTI's folder."""
    return str(data_path("kitti/training").parent)


def test_prepare(root: str) -> None:
    folder = KittiFolder(root)
    seconds = median_seconds(lambda: prepare_frame(folder), rounds=3)
    reading = Path(root, "training", "velodyne", f"{folder.frames[0]}.bin").stat().st_size
    memory = peak_mebibytes(_PREPARE.format(root=root), "prepare_frame(folder)")
    # The copy's bandwidth counts what is read and what is written.
    floor = 2 * reading / copy_bandwidth(reading)
    assert seconds > floor
    print(f"\nprepare a frame: {seconds:.3f} s, {seconds / floor:.0f} x floor (reading it), {memory:.0f} MiB")
    print(f"\na frame of {len(draw(root)[0][0])} points in view, batch 1, {torch.get_num_threads()} threads")
    print("floor: reading the weights once; a training step reads and writes them and their moments, 11 times")
    print(f"{'':28}{'detect s':>10}{'x floor':>9}{'MiB':>8}{'step s':>10}{'x floor':>9}{'MiB':>8}{'weights':>10}")


def _seconds(call: Callable[[], None], rounds: int) -> float:
    """Return the median time of a call, after one that warms it up."""
    times = []
    for _ in range(rounds + 1):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return statistics.median(times[1:])


@pytest.mark.parametrize("kind", ROUNDS)
@pytest.mark.parametrize("family", DETECTORS)
def test_frame(root: str, family: str, kind: str) -> None:
    name, rounds = f"{family}_{kind}", ROUNDS[kind]
    sample, threads = draw(root), torch.get_num_threads()
    torch.manual_seed(0)
    detector = create_detector(name)
    weights = 4 * sum(p.numel() for p in detector.parameters())
    floor = weights / copy_bandwidth(weights)
    times, peaks = [], []
    for what in (detect, train):
        times.append(_seconds(lambda what=what: what(detector, sample), rounds))
        setup = _SETUP.format(root=root, name=name, threads=threads)
        peaks.append(peak_mebibytes(setup, f"{what.__name__}(detector, sample)"))
    assert all(torch.isfinite(p).all() for p in detector.parameters())
    print(
        f"\n{name:28}{times[0]:10.3f}{times[0] / floor:9.0f}{peaks[0]:8.0f}"
        f"{times[1]:10.3f}{times[1] / (11 * floor):9.0f}{peaks[1]:8.0f}{weights / 4e6:8.2f} M"
    )
