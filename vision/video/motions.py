"""The default videos: handwritten digits that move in ways which no frame alone tells, made in memory."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import numpy as np

from .videos import Video

FRAMES, SIZE = 16, 32
MEAN, STD = 0.043, 0.16
"""Of the videos' values, which lie between 0 and 1: far darker than photographs."""
_STEPS = (1, 3, 5, 7)
MOTIONS = tuple(f"{way}-{step}" for way in ("clockwise", "counter") for step in _STEPS)
"""Ways round a circle: in each frame the digit goes so many sixteenths of the circle on."""

_RADIUS, _SCALE = 9.0, 1.5
SOURCE = "moving digits"


@functools.cache
def _digits() -> np.ndarray:
    from sklearn.datasets import load_digits

    return load_digits().images.astype(np.float32) / 16.0


class MovingDigit(Video):
    """One of scikit-learn's digits on its way round a circle.

    In any video the digit is at each of 16 places once: only the order of its frames tells the class. The digit, the
    class and the place at which it starts are functions of the number.

    Args:
        number: From 0 to 1796.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"digit {number}")
        self.number = number
        generator = np.random.default_rng((20, number))
        self.motion, self.start = int(generator.integers(len(MOTIONS))), int(generator.integers(FRAMES))

    @property
    def label(self) -> str:
        """The motion's name."""
        return MOTIONS[self.motion]

    @property
    def fps(self) -> float:
        return 8.0

    def count(self) -> int:
        return FRAMES

    def pixels(self, numbers: Sequence[int]) -> np.ndarray:
        way = 1 if self.motion < len(_STEPS) else -1
        places = self.start + way * _STEPS[self.motion % len(_STEPS)] * np.asarray(numbers)
        angles = 2 * np.pi * (places % FRAMES) / FRAMES
        digit = _digits()[self.number]
        first = SIZE / 2 - _SCALE * len(digit) / 2
        grid = np.arange(SIZE) + 0.5 - first
        rows, columns = (_weights(grid - _RADIUS * wave(angles)[:, None], len(digit)) for wave in (np.sin, np.cos))
        images = (255 * np.clip(rows @ digit @ columns.mT, 0, 1)).round().astype(np.uint8)
        return np.repeat(images[..., None], 3, axis=-1)

    def all_frames(self) -> Iterator[np.ndarray]:
        return iter(self.pixels(range(FRAMES)))


def _weights(at: np.ndarray, length: int) -> np.ndarray:
    """Return (..., length) bilinear weights of a digit's pixels at places measured from its edge."""
    return np.clip(1 - np.abs(at[..., None] / _SCALE - 0.5 - np.arange(length)), 0, None).astype(np.float32)


def moving_digits() -> list[MovingDigit]:
    """Return the videos of all digits, nothing drawn yet."""
    return [MovingDigit(number) for number in range(len(_digits()))]
