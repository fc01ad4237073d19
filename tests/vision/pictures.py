"""Small folders of made-up images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"blue": (40, 60, 200), "green": (40, 200, 60), "red": (200, 60, 40)}


def picture(label: str, seed: int, size: tuple[int, int] = (20, 16)) -> Image.Image:
    """Return noise around a class's colour."""
    noise = np.random.default_rng(seed).normal(0, 30, (size[1], size[0], 3))
    return Image.fromarray((np.array(COLOURS[label]) + noise).clip(0, 255).astype(np.uint8))


def write_folder(root: Path, per_class: int = 10, seed: int = 0, classes: tuple[str, ...] = tuple(COLOURS)) -> Path:
    """Write CLASS/0.png, CLASS/1.png, ..."""
    for k, label in enumerate(classes):
        (root / label).mkdir(parents=True)
        for i in range(per_class):
            picture(label, 1000 * seed + 100 * k + i).save(root / label / f"{i}.png")
    return root


def write_divided(root: Path, **sizes: int) -> Path:
    """Write train/CLASS/0.png and so on, with so many images of each class in each part."""
    for seed, (part, count) in enumerate(sizes.items()):
        write_folder(root / part, count, seed)
    return root
