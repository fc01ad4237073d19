"""Reading point clouds of other formats than KITTI's: .npy, .pcd, .las and .laz."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.errors import ConfigError, DataError
from .kitti.frames import read_points

ENDINGS = (".bin", ".npy", ".pcd", ".las", ".laz")
_FARTHEST = 1e6  # metres
_LARGEST = np.finfo(np.float32).max


def read_cloud(path: str | Path, features: int = 4) -> Tensor:
    """Read one point cloud.

    Args:
        path: ``.bin`` (KITTI's: x, y, z, intensity as little-endian float32), ``.npy`` (points, values), ``.pcd``
            (needs pypcd4), ``.las`` or ``.laz`` (needs laspy).
        features: Values of a point that are wanted: x, y, z, intensity and what a ``.npy`` has after these. What the
            file lacks is 0.

    Returns:
        (N, features) float32, without the points that are not finite or farther than 1000 km (10 km for ``.bin``);
        those are counted in a warning.

    Raises:
        DataError: The file is absent, cut short, or no cloud; names it.
        ConfigError: The library that reads the format is not installed.
    """
    source = Path(path)
    if source.suffix == ".bin":
        values = read_points(source).numpy()
    elif source.suffix == ".npy":
        values = _read_npy(source)
    elif source.suffix == ".pcd":
        values = _read_pcd(source)
    elif source.suffix in (".las", ".laz"):
        values = _read_las(source)
    else:
        raise DataError(f"{source}: found the ending {source.suffix!r}, expected one of {', '.join(ENDINGS)}")
    good = (np.isfinite(values) & (np.abs(values) < np.float32(3e38))).all(1) & (np.abs(values[:, :3]) < _FARTHEST).all(
        1
    )
    if not good.all():
        warnings.warn(
            f"{source}: dropped {int((~good).sum())} of {len(values)} points that are not finite or out of range",
            stacklevel=2,
        )
    made = np.zeros((int(good.sum()), features), dtype=np.float32)
    width = min(features, values.shape[1])
    made[:, :width] = values[good, :width]
    return torch.from_numpy(made)


def _read_npy(source: Path) -> np.ndarray:
    try:
        values = np.load(source, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{source}: cannot be read as .npy ({error})") from error
    if values.ndim != 2 or values.shape[1] < 3 or values.dtype.kind not in "fiu":
        raise DataError(
            f"{source}: found {values.dtype} of shape {values.shape}, expected numbers (points, 3 or more): x, y, z, "
            "perhaps intensity, and more"
        )
    return values.astype(np.float64)


def _read_pcd(source: Path) -> np.ndarray:
    try:
        from pypcd4 import PointCloud
    except ImportError as error:
        raise ConfigError(f"{source}: .pcd files need pypcd4: pip install 'scanweave[pointclouds]'") from error
    try:
        cloud = PointCloud.from_path(source)
    except Exception as error:  # the library raises whatever its parser meets
        raise DataError(f"{source}: cannot be read as .pcd ({type(error).__name__}: {error})") from error
    names = [name for name in ("x", "y", "z", "intensity") if name in cloud.fields]
    if names[:3] != ["x", "y", "z"]:
        raise DataError(f"{source}: found the fields {', '.join(cloud.fields)}, expected x, y and z among them")
    return np.asarray(cloud.numpy(tuple(names)), dtype=np.float64)


def _read_las(source: Path) -> np.ndarray:
    try:
        import laspy
    except ImportError as error:
        raise ConfigError(f"{source}: .las files need laspy: pip install 'scanweave[pointclouds]'") from error
    try:
        cloud: Any = laspy.read(source)
    except Exception as error:  # the library raises whatever its parser meets
        raise DataError(f"{source}: cannot be read as {source.suffix} ({type(error).__name__}: {error})") from error
    # Intensities are whole numbers up to 65535.
    return np.stack([cloud.x, cloud.y, cloud.z, np.asarray(cloud.intensity) / 65535], 1).astype(np.float64)
