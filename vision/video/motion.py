"""The second stream: how each frame differs from the one before it, as colours or as optical flow."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, Literal

import numpy as np

from ...core.errors import ConfigError

MotionName = Literal["none", "difference", "flow"]

CHANNELS = {"none": 0, "difference": 3, "flow": 2}
"""Channels of each kind."""

_BOUND = 20.0


class Motion:
    """Frame by frame, the difference to the frame before; zero at a video's first.

    Args:
        kind: ``difference`` of the colours, or dense optical ``flow`` by OpenCV (Farneback's), clipped at 20 pixels.

    Raises:
        ConfigError: OpenCV is not installed and flow was asked for.
    """

    def __init__(self, kind: MotionName) -> None:
        self.kind: MotionName = kind
        if kind == "flow" and find_spec("cv2") is None:
            raise ConfigError(
                "--data.motion flow needs OpenCV, which is not installed: pip install opencv-python-headless, or take "
                "--data.motion difference"
            )
        self._last: np.ndarray | None = None

    def step(self, frame: np.ndarray) -> np.ndarray:
        """Return the motion from the frame before to this one.

        Args:
            frame: (H, W, 3) uint8.

        Returns:
            (H, W, channels) float32, about -1 to 1.
        """
        last, self._last = self._last, frame
        if last is None:
            return np.zeros((*frame.shape[:2], CHANNELS[self.kind]), np.float32)
        if self.kind == "difference":
            return (frame.astype(np.float32) - last.astype(np.float32)) / 255
        import cv2

        grey: list[Any] = [cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in (last, frame)]
        flow = cv2.calcOpticalFlowFarneback(grey[0], grey[1], None, 0.5, 3, 15, 3, 5, 1.2, 0)  # type: ignore[call-overload]
        return np.clip(flow / _BOUND, -1, 1).astype(np.float32)


def motion_of(frames: np.ndarray, kind: MotionName) -> np.ndarray:
    """Return the motion of a clip.

    Args:
        frames: (T, H, W, 3) uint8.
        kind: ``difference`` or ``flow``.

    Returns:
        (T, H, W, channels) float32.
    """
    motion = Motion(kind)
    return np.stack([motion.step(frame) for frame in frames])
