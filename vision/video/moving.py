"""Moving MNIST: handwritten digits that fly straight and bounce off the borders, made as they are asked for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from ...core.errors import DataError

SIDE = 28
SPEED = 0.1
"""Way of a digit in one frame, as a share of the room that it has along an axis."""
_PARTS = {"train": (0.0, 0.8), "val": (0.8, 0.9), "test": (0.9, 1.0)}


def digit_images(part: str, root: str | None = None) -> Tensor:
    """Return the digits of one part.

    Args:
        part: train, val or test: no digit is in two of them.
        root: Folder of torchvision's MNIST, already fetched; None takes scikit-learn's 1,797 digits of 8 x 8 pixels,
            made larger.

    Returns:
        (N, 28, 28) float32 in [0, 1].

    Raises:
        DataError: The folder holds no MNIST.
    """
    low, high = _PARTS[part]
    if root is None:
        from sklearn.datasets import load_digits

        images = torch.from_numpy(load_digits().images).float()[:, None] / 16
        images = F.interpolate(images, (SIDE, SIDE), mode="bilinear", align_corners=False)[:, 0]
        return images[int(low * len(images)) : int(high * len(images))]
    from torchvision.datasets import MNIST

    try:
        images = MNIST(root, train=part != "test").data.float() / 255
    except RuntimeError as error:
        raise DataError(
            f"{root}: holds no MNIST ({error}); fetch it once: "
            f"python -c \"from torchvision.datasets import MNIST; MNIST('{root}', download=True)\""
        ) from error
    if part == "test":
        return images
    cut = int(0.9 * len(images))
    return images[:cut] if part == "train" else images[cut:]


def bounce(start: np.ndarray, step: np.ndarray, frames: int) -> np.ndarray:
    """Return the places of points that move straight within [0, 1] and bounce off its ends.

    The place without borders, ``start + t step``, is folded back: the period is 2, and its second half runs backwards.

    Args:
        start: (...) where they are at first.
        step: (...) their way in one frame.
        frames: How many places of each are wanted.

    Returns:
        (frames, ...).
    """
    free = start + np.arange(frames).reshape(-1, *(1,) * np.ndim(start)) * step
    return 1 - np.abs(1 - free % 2)


def moving_clip(images: Tensor, generator: np.random.Generator, frames: int, size: int, digits: int) -> Tensor:
    """Return one clip (frames, 1, size, size) in [0, 1] of digits drawn from images (N, 28, 28).

    Each starts anywhere and flies in any direction, a tenth of its room in a frame; where they overlap the lighter
    one shows. A way that would leave the frame is folded back at the border.

    Source:
        Srivastava et al., Unsupervised learning of video representations using LSTMs (2015), section 3.1, and the
        authors' generator.
    """
    chosen = images[torch.from_numpy(generator.integers(len(images), size=digits))]
    angle = generator.uniform(0, 2 * np.pi, digits)
    way = SPEED * np.stack((np.sin(angle), np.cos(angle)), -1)
    room = size - SIDE
    places = (bounce(generator.uniform(0, 1, (digits, 2)), way, frames) * room).astype(np.int64)
    clip = torch.zeros(frames, 1, size, size)
    for t in range(frames):
        for digit, (y, x) in zip(chosen, places[t].tolist(), strict=True):
            window = clip[t, 0, y : y + SIDE, x : x + SIDE]
            torch.maximum(window, digit, out=window)
    return clip


class MovingDigits(Dataset[dict[str, object]]):
    """Clips of moving digits.

    Args:
        images: (N, 28, 28) in [0, 1].
        count: How many clips.
        frames: Frames of each.
        size: Side of a frame, pixels.
        digits: Digits in each.
        seed: With its number, what a clip is a function of; None draws another from PyTorch's generator each time, for
            training.
    """

    def __init__(
        self, images: Tensor, count: int, frames: int, size: int = 64, digits: int = 2, seed: int | None = None
    ) -> None:
        self.images, self.count, self.seed = images, count, seed
        self.frames, self.size, self.digits = frames, size, digits

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, object]:
        key: Sequence[int] = (int(torch.randint(2**31, ())),) if self.seed is None else (self.seed, index)
        clip = moving_clip(self.images, np.random.default_rng(key), self.frames, self.size, self.digits)
        return {"video": clip, "index": index}
