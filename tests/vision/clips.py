"""Videos written by PyAV and as folders of frames, for the tests."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

COLOURS = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0)}


def gradient(count: int, height: int = 48, width: int = 64) -> list[np.ndarray]:
    """Return frames that tell their number: a bar as bright as ``8 * number + 16``, in the upper half."""
    frames = []
    for number in range(count):
        frame = np.full((height, width, 3), 16, np.uint8)
        frame[: height // 2] = 16 + 8 * (number % 28)
        frames.append(frame)
    return frames


def write_video(path: Path, frames: Iterable[np.ndarray], *, fps: int = 10, gop: int = 8, codec: str = "mpeg4") -> Path:
    """Encode frames (H, W, 3) uint8; the file's ending names the container."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = None
        for frame in frames:
            if stream is None:
                stream = container.add_stream(codec, rate=Fraction(fps))
                stream.height, stream.width, stream.pix_fmt = frame.shape[0], frame.shape[1], "yuv420p"
                stream.bit_rate, stream.gop_size = 4_000_000, gop
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        if stream is not None:
            container.mux(stream.encode())
    return path


def write_frames(folder: Path, frames: Iterable[np.ndarray]) -> Path:
    """Write frames as img_1.png, img_2.png, ... without leading zeros."""
    folder.mkdir(parents=True)
    for number, frame in enumerate(frames, 1):
        Image.fromarray(frame).save(folder / f"img_{number}.png")
    return folder


def turning(seed: int, colour: tuple[int, int, int], count: int = 12) -> list[np.ndarray]:
    """Return frames of one colour with noise."""
    noise = np.random.default_rng(seed).integers(0, 60, (count, 32, 40, 3))
    return list(np.clip(np.array(colour) * 0.7 + noise, 0, 255).astype(np.uint8))


def write_classes(root: Path, per_class: int = 5) -> Path:
    """Write class folders of coloured videos; the last video of each class is a folder of frames."""
    for k, (name, colour) in enumerate(COLOURS.items()):
        for i in range(per_class - 1):
            write_video(root / name / f"{i}.mp4", turning(10 * k + i, colour))
        write_frames(root / name / "frames", turning(10 * k + 9, colour))
    return root
