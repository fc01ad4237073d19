"""Made-up street scenes in KITTI's format: a turning lidar's rays cast at ground, walls, cars, people and cyclists."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ...core.storage import atomic_file
from ..boxes import Calibration, camera_to_image, lidar_to_camera
from ..overlap import box_iou
from .objects import Objects, write_labels

# A Velodyne HDL-64E on KITTI's car: its height, and the elevations of its beams.
_HEIGHT = 1.73
_ELEVATION = (-24.8, 2.0)
_NOISE = 0.02
_RANGE = 80.0
_SIZES = {"Car": (3.9, 1.6, 1.56), "Pedestrian": (0.8, 0.6, 1.73), "Cyclist": (1.76, 0.6, 1.73)}
# Parts of an object's box: centre and size as shares of the whole, from back to front, right to left, bottom to top.
_PARTS = {
    "Car": ((0.0, 0.0, -0.2, 1.0, 1.0, 0.6), (-0.05, 0.0, 0.3, 0.55, 0.9, 0.4)),
    "Pedestrian": ((0.0, 0.0, -0.25, 0.6, 0.6, 0.5), (0.0, 0.0, 0.25, 1.0, 1.0, 0.5)),
    "Cyclist": ((0.0, 0.0, -0.2, 1.0, 0.25, 0.6), (-0.1, 0.0, 0.2, 0.4, 1.0, 0.6)),
}
_IMAGE = (1242, 375)
_FOCAL = 721.5


@dataclass(frozen=True)
class Scene:
    """One made-up frame.

    Args:
        points: (N, 4) float32 lidar points: x, y, z in metres, intensity.
        objects: What the camera sees, labelled by KITTI's rules.
        boxes: (M, 7) float64 lidar boxes of those objects.
        calibration: The sensors' calibration.
        size: Image size (width, height) in pixels.
    """

    points: Tensor
    objects: Objects
    boxes: Tensor
    calibration: Calibration
    size: tuple[int, int]


def scene_calibration() -> Calibration:
    """Return the calibration that all scenes share: a camera 27 cm before and 8 cm below the lidar, looking forward."""
    p2 = [[_FOCAL, 0, 609.6, 0], [0, _FOCAL, 172.9, 0], [0, 0, 1, 0]]
    tr = [[0, -1, 0, 0], [0, 0, -1, -0.08], [1, 0, 0, -0.27]]
    return Calibration(
        torch.tensor(p2, dtype=torch.float64), torch.eye(3, dtype=torch.float64), torch.tensor(tr, dtype=torch.float64)
    )


def _uniform(generator: torch.Generator, low: float, high: float, *shape: int) -> Tensor:
    return low + (high - low) * torch.rand(*shape, generator=generator, dtype=torch.float64)


def _place(generator: torch.Generator, count: int) -> tuple[list[str], Tensor]:
    """Return the classes and lidar boxes (M, 7) of at most ``count`` objects that stand free of each other."""
    names: list[str] = []
    boxes = torch.zeros(0, 7, dtype=torch.float64)
    for draw in _uniform(generator, 0, 1, count).tolist():
        name = "Car" if draw < 0.6 else "Pedestrian" if draw < 0.85 else "Cyclist"
        size = torch.tensor(_SIZES[name], dtype=torch.float64) * (1 + 0.08 * _uniform(generator, -1, 1, 3))
        x, y = _uniform(generator, 6, 55, 1), _uniform(generator, -14, 14, 1)
        # Cars keep to the street's direction, people walk anywhere.
        spread = 0.15 if name == "Car" else math.pi
        turn = _uniform(generator, -spread, spread, 1) + math.pi * (_uniform(generator, 0, 1, 1) < 0.5)
        box = torch.cat((x, y, size[2:] / 2 - _HEIGHT, size, turn))[None]
        wide = box.clone()
        wide[:, 3:5] += 0.6
        if not bool((box_iou(wide, boxes, "bev") > 0).any()):
            names.append(name)
            boxes = torch.cat((boxes, box))
    return names, boxes


def _parts(names: list[str], boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the solid boxes (K, 7) that objects are made of, and whose they are (K,)."""
    solid, owner = [], []
    for index, (name, box) in enumerate(zip(names, boxes, strict=True)):
        for part in torch.tensor(_PARTS[name], dtype=torch.float64):
            shift, size = part[:3] * box[3:6], part[3:] * box[3:6]
            cos, sin = box[6].cos(), box[6].sin()
            turned = torch.stack((shift[0] * cos - shift[1] * sin, shift[0] * sin + shift[1] * cos, shift[2]))
            solid.append(torch.cat((box[:3] + turned, size, box[6:])))
            owner.append(index)
    return torch.stack(solid) if solid else boxes, torch.tensor(owner, dtype=torch.int64)


def _walls(generator: torch.Generator) -> Tensor:
    """Return a few house fronts (W, 7) along both sides of the street."""
    count = 6
    x, length = _uniform(generator, -40, 70, count), _uniform(generator, 8, 25, count)
    side = torch.tensor([1.0, -1.0] * (count // 2), dtype=torch.float64)
    y, height = side * _uniform(generator, 18, 28, count), _uniform(generator, 3, 9, count)
    thick, turn = torch.full((count,), 0.5, dtype=torch.float64), _uniform(generator, -0.05, 0.05, count)
    return torch.stack((x, y, height / 2 - _HEIGHT, length, thick, height, turn), 1)


def cast_rays(directions: Tensor, boxes: Tensor) -> Tensor:
    """Return how far rays from the origin go until they meet each box.

    Args:
        directions: (R, 3) unit vectors.
        boxes: (K, 7) lidar boxes.

    Returns:
        (R, K) metres, infinite where a ray misses.
    """
    cos, sin = boxes[:, 6].cos(), boxes[:, 6].sin()
    start = -torch.stack(
        (boxes[:, 0] * cos + boxes[:, 1] * sin, boxes[:, 1] * cos - boxes[:, 0] * sin, boxes[:, 2]), -1
    )
    x, y, z = directions[:, None].unbind(-1)
    local = torch.stack((x * cos + y * sin, y * cos - x * sin, z.expand(-1, len(boxes))), -1)
    local = torch.where(local.abs() < 1e-12, torch.full_like(local, 1e-12), local)
    first, second = (-boxes[:, 3:6] / 2 - start) / local, (boxes[:, 3:6] / 2 - start) / local
    enter, leave = torch.minimum(first, second).amax(-1), torch.maximum(first, second).amin(-1)
    return torch.where((enter <= leave) & (enter > 0), enter, torch.full_like(enter, math.inf))


def make_scene(seed: int, objects: int = 16, beams: int = 64, azimuths: int = 1024) -> Scene:
    """Make one frame.

    Args:
        seed: The same seed gives the same frame.
        objects: How many objects to try to place; some find no room, some the camera does not see.
        beams: The lidar's beams.
        azimuths: Rays of each beam in one turn.

    Returns:
        The frame. Occlusion says which share of the rays that would meet an object does: at least 0.8 is 0, at least
        0.4 is 1, less is 2. Truncation is the share of the image box that lies outside the image. Objects that no ray
        meets, or that are outside the image, have no label.
    """
    generator = torch.Generator().manual_seed(seed)
    names, boxes = _place(generator, objects)
    parts, owner = _parts(names, boxes)
    solid = torch.cat((parts, _walls(generator)))
    elevation = torch.linspace(*_ELEVATION, beams, dtype=torch.float64).deg2rad()[:, None]
    azimuth = torch.arange(azimuths, dtype=torch.float64) * (2 * math.pi / azimuths)
    flat = torch.stack((azimuth.cos(), azimuth.sin()), -1)
    directions = torch.cat(
        ((elevation.cos()[..., None] * flat), elevation.sin()[..., None].expand(-1, azimuths, -1)), -1
    ).reshape(-1, 3)
    met = cast_rays(directions, solid)
    ground = torch.where(directions[:, 2] < 0, -_HEIGHT / directions[:, 2], torch.full((), math.inf).double())
    distance, what = torch.cat((met, ground[:, None]), 1).min(1)
    # Far and faint returns are lost; the rest is read with the lidar's noise.
    kept = (distance < _RANGE) & (_uniform(generator, 0, 1, len(distance)) < 1.1 * torch.exp(-distance / 120))
    noisy = distance + _NOISE * torch.randn(len(distance), generator=generator, dtype=torch.float64)
    shade = torch.where(what == len(solid), 0.25, 0.45) * _uniform(generator, 0.5, 1.5, len(distance))
    points = torch.cat((directions * noisy[:, None], shade[:, None]), 1)[kept].float()
    whose = torch.cat((owner, torch.full((len(solid) - len(owner) + 1,), -1)))[what]
    share, seen = torch.zeros(len(names)), torch.zeros(len(names))
    for index in range(len(names)):
        would_meet = met[:, : len(owner)][:, owner == index].isfinite().any(1).sum()
        share[index] = (whose == index).sum() / would_meet.clamp(min=1)
        seen[index] = ((whose == index) & kept).sum()
    return _label(names, boxes, seen, share, points)


def _label(names: list[str], boxes: Tensor, seen: Tensor, share: Tensor, points: Tensor) -> Scene:
    calibration = scene_calibration()
    camera = lidar_to_camera(boxes, calibration)
    whole, cut = camera_to_image(camera, calibration), camera_to_image(camera, calibration, _IMAGE)
    area = (whole[:, 2:] - whole[:, :2]).prod(-1)
    inside = (cut[:, 2:] - cut[:, :2]).clamp(min=0).prod(-1)
    good = torch.nonzero((seen > 0) & (inside > 0))[:, 0]
    labels = Objects.from_boxes(tuple(names[i] for i in good.tolist()), camera[good], cut[good])
    labels.values[:, 0] = (1 - inside / area)[good]
    labels.values[:, 1] = torch.where(share >= 0.8, 0.0, torch.where(share >= 0.4, 1.0, 2.0))[good].double()
    return Scene(points, labels, boxes[good], calibration, _IMAGE)


def write_scenes(root: str | Path, count: int, seed: int = 0, **scene: int) -> Path:
    """Write made-up frames as a KITTI tree without images: the last quarter is for validation.

    Args:
        root: Folder to write ``training/`` and ``ImageSets/`` to.
        count: How many frames.
        seed: Frame i is ``make_scene(seed + i)``.
        scene: What else `make_scene` takes.

    Returns:
        The folder.

    Raises:
        ConfigError: A file cannot be written.
    """
    folder = Path(root)
    names = [f"{index:06d}" for index in range(count)]
    for index, name in enumerate(names):
        made = make_scene(seed + index, **scene)
        with atomic_file(folder / "training" / "velodyne" / f"{name}.bin") as file:
            file.write(made.points.numpy().astype("<f4").tobytes())
        write_labels(folder / "training" / "label_2" / f"{name}.txt", made.objects)
        matrices = {"P2": made.calibration.p2, "R0_rect": made.calibration.r0, "Tr_velo_to_cam": made.calibration.tr}
        with atomic_file(folder / "training" / "calib" / f"{name}.txt", "w") as file:
            for key, matrix in matrices.items():
                file.write(f"{key}: {' '.join(f'{value:.12e}' for value in matrix.flatten().tolist())}\n")
    for split, chosen in (("train", names[: count - count // 4]), ("val", names[count - count // 4 :])):
        with atomic_file(folder / "ImageSets" / f"{split}.txt", "w") as file:
            file.write("".join(f"{name}\n" for name in chosen))
    return folder
