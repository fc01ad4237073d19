"""Images of an arrow and a circle; the question is whether the arrow points at the circle.

Circle and arrow keep their sizes while the picture may grow, so a larger picture asks the same question over larger
distances. Images are drawn at the published scale and reduced by averaging, which keeps the geometry.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.utils.data import Dataset

BORDER = 30
ARROW_LENGTH, LINE_WIDTH, RADIUS = (15, 30), (2, 4), (15, 30)
MISS = 1.2
"""How far beside the circle's edge a miss passes, and how far inside it a hit, as a factor of the radius."""


def draw(seed: int, index: int, side: int, reduce: int = 1) -> tuple[Image.Image, bool, tuple[float, float]]:
    """Draw one image.

    Args:
        seed: Seed of the set.
        index: Which image of the set.
        side: Pixels a side before reduction: 192 as published for training, 384 for extrapolation.
        reduce: How many pixels a side become one.

    Returns:
        The image, whether the arrow points at the circle, and two angles: where the circle lies as seen from the arrow,
        and where the arrow points.

    Source:
        Pöppel et al., pLSTM: parallelizable linear source transition mark networks (2025), section 4.
    """
    rng = np.random.default_rng((seed, index))
    inner = side - 2 * BORDER
    hit = bool(rng.random() < 0.5)
    length, width, radius = (int(rng.integers(*bounds)) for bounds in (ARROW_LENGTH, LINE_WIDTH, RADIUS))
    circle = rng.uniform(0, inner, 2)
    # A distance of 2 radii or more along an axis on the torus of the inner square, margin 2 radii at its end.
    apart = rng.uniform(2 * radius, inner - 2 * radius, 2)
    arrow = (circle + apart) % inner
    towards = circle - arrow
    distance = float(np.hypot(*towards))
    passing = radius / MISS if hit else radius * MISS
    half = math.acos(math.sqrt(abs((distance**2 - passing**2) / distance**2)))
    straight, turn = math.atan2(towards[1], towards[0]), rng.random()
    angle = straight - half + 2 * half * turn if hit else straight + half + (2 * math.pi - 2 * half) * turn
    image = Image.new("RGB", (side, side), "white")
    pen = ImageDraw.Draw(image)
    x, y = circle + BORDER
    pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill="black")
    middle, ray = arrow + BORDER, np.array([math.cos(angle), math.sin(angle)])
    tip, tail = middle + ray * length / 2, middle - ray * length / 2
    pen.line((*tail, *tip), fill="black", width=width)
    for side_angle in (angle + 0.5, angle - 0.5):
        barb = tip - np.array([math.cos(side_angle), math.sin(side_angle)]) * length / 2.5
        pen.line((*barb, *tip), fill="black", width=width)
    return image.reduce(reduce) if reduce > 1 else image, hit, (straight, angle)


class Arrows(Dataset[tuple[Tensor, int, Tensor]]):
    """A set of such images, each drawn when it is asked for: pixels, the answer, and both angles' cosines and sines.

    Args:
        size: Images.
        side: Pixels a side before reduction.
        reduce: How many pixels a side become one.
        seed: Seed of the set.
    """

    def __init__(self, size: int, side: int, reduce: int, seed: int) -> None:
        self.size, self.side, self.reduce, self.seed = size, side, reduce, seed

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[Tensor, int, Tensor]:
        image, hit, angles = draw(self.seed, index, self.side, self.reduce)
        pixels = torch.from_numpy(np.asarray(image, dtype=np.float32) / 127.5 - 1)
        directions = torch.tensor([f(angle) for angle in angles for f in (math.cos, math.sin)], dtype=torch.float32)
        return pixels.permute(2, 0, 1).contiguous(), int(hit), directions
