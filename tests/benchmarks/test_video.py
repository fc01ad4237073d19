"""Video: frames a second of recognition beside the decoder alone, and the memory that a long stream takes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from scanweave.vision.video.dataset import ClipInput
from scanweave.vision.video.decode import stream_frames
from scanweave.vision.video.encoder import FrameEncoder
from scanweave.vision.video.lrcn import LRCNNetwork
from scanweave.vision.video.streaming import score_over_time
from scanweave.vision.video.videos import open_video

from ..vision.clips import gradient, write_video
from .compare import compare, peak_mebibytes
from .floor import copy_bandwidth

pytestmark = pytest.mark.bench

FRAMES, HEIGHT, WIDTH = 100, 240, 320
FPS = 25


def network(backbone: str, size: int, **options: object) -> LRCNNetwork:
    """Return LRCN with two layers of minGRU over a backbone's features."""
    torch.manual_seed(0)
    encoder = FrameEncoder(backbone, img_size=size, options=options)
    return LRCNNetwork(encoder, 10, mixer="mingru", width=128, depth=2).eval()


@torch.no_grad()
def recognise(path: Path, model: LRCNNetwork, size: int) -> int:
    """Read a video frame by frame and score each; return how many."""
    return sum(1 for _ in score_over_time({"video": model}, open_video(path, path.name), ClipInput(size, "whole")))


def write_long(path: Path, seconds: int) -> Path:
    """Write a video of so many seconds, 64 x 48 pixels."""
    few = gradient(28)
    return write_video(path, (few[i % 28] for i in range(seconds * FPS)), fps=FPS)


def test_recognition_beside_the_decoder(tmp_path: Path, bench_out: Path | None) -> None:
    path = write_video(tmp_path / "a.mp4", gradient(FRAMES, HEIGHT, WIDTH))
    small = network("vil_tiny", 112, depth=6, embed_dim=96)
    whole = network("resnet18", 224)
    calls = {
        "decoder alone": lambda: sum(1 for _ in stream_frames(path)),
        "+ vil_tiny (6 x 96), 112": lambda: recognise(path, small, 112),
        "+ resnet18, 224": lambda: recognise(path, whole, 224),
    }
    size = FRAMES * HEIGHT * WIDTH * 3
    found = compare(
        f"{FRAMES} frames of {WIDTH} x {HEIGHT}",
        calls,
        floor_seconds=size / copy_bandwidth(size),
        out=bench_out,
        rounds=3,
    )
    print("frames/s: " + ", ".join(f"{name} {FRAMES / ms * 1e3:.0f}" for name, ms in found.items()))
    assert found["decoder alone"] == min(found.values())


_SETUP = """
import torch
from pathlib import Path
from tests.benchmarks.test_video import *
torch.set_num_threads(1)
model = network("scanvit_tiny", 32, patch_size=8, depth=1, embed_dim=32)
recognise(Path({short!r}), model, 32)
"""


def test_a_long_stream_takes_no_more_memory(tmp_path: Path) -> None:
    short = write_long(tmp_path / "short.mp4", 10)
    memory = {}
    for seconds in (10, 600):
        path = write_long(tmp_path / f"{seconds}.mp4", seconds)
        memory[seconds] = peak_mebibytes(_SETUP.format(short=str(short)), f"recognise(Path({str(path)!r}), model, 32)")
        print(f"a stream of {seconds} s, {seconds * FPS} frames: peak memory grows by {memory[seconds]:.1f} MiB")
    assert memory[600] < memory[10] + 16
