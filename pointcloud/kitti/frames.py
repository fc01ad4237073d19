"""Reading KITTI's folders: points, calibrations, image sizes, and which frames there are."""

from __future__ import annotations

import struct
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...core.errors import DataError, nearest
from ..boxes import Calibration
from .objects import Objects, parse_number, read_lines, read_objects

# Lidars see some hundred metres; what claims to be farther is a broken value.
_FARTHEST = 1e4
_MATRICES = {"P2": (3, 4), "R0_rect": (3, 3), "Tr_velo_to_cam": (3, 4)}
_RECORD = 16  # bytes: x, y, z, intensity as little-endian float32


def read_points(path: str | Path) -> Tensor:
    """Read one lidar scan.

    Args:
        path: Records of x, y, z (metres) and intensity, each a little-endian float32.

    Returns:
        (N, 4) float32 in the file's order, without the points that are not finite or farther than 10 km; those are
        counted in a warning.

    Raises:
        DataError: The file is absent, or its size is not a whole number of records.
    """
    source = Path(path)
    try:
        data = source.read_bytes()
    except OSError as error:
        raise DataError(f"{source}: cannot be read ({error.strerror or error})") from error
    if len(data) % _RECORD:
        raise DataError(
            f"{source}: {len(data)} bytes, expected a multiple of {_RECORD} (x, y, z, intensity as float32); "
            "the file is cut short or of another format"
        )
    points = np.frombuffer(data, dtype="<f4").reshape(-1, 4)
    good = (np.isfinite(points) & (np.abs(points) <= _FARTHEST)).all(1)
    if not good.all():
        warnings.warn(
            f"{source}: dropped {int((~good).sum())} of {len(points)} points that are not finite or out of range",
            stacklevel=2,
        )
        points = points[good]
    return torch.from_numpy(points.astype(np.float32))


def read_calibration(path: str | Path) -> Calibration:
    """Read one frame's calibration: the matrices P2, R0_rect and Tr_velo_to_cam of KITTI's file.

    Args:
        path: Text, a matrix a line: its name, a colon, its values by rows.

    Returns:
        The calibration.

    Raises:
        DataError: The file or a matrix is absent, or a line is malformed; names the file and the line.
    """
    source = Path(path)
    found: dict[str, Tensor] = {}
    names = []
    for number, line in enumerate(read_lines(source), 1):
        if not line.strip():
            continue
        name, colon, rest = line.partition(":")
        if not colon:
            raise DataError(f"{source}:{number}: found {line.strip()[:40]!r}, expected a name, a colon and numbers")
        name = name.strip()
        names.append(name)
        if name not in _MATRICES:
            continue
        shape = _MATRICES[name]
        words = rest.split()
        if len(words) != shape[0] * shape[1]:
            raise DataError(f"{source}:{number}: {name} has {len(words)} values, expected {shape[0] * shape[1]}")
        values = [parse_number(word, f"{source}:{number}", name) for word in words]
        found[name] = torch.tensor(values, dtype=torch.float64).reshape(shape)
    for name in _MATRICES:
        if name not in found:
            raise DataError(f"{source}: no line {name!r}; found {', '.join(names) or 'nothing'}{nearest(name, names)}")
    try:
        return Calibration(found["P2"], found["R0_rect"], found["Tr_velo_to_cam"])
    except ValueError as error:
        raise DataError(f"{source}: {error}") from error


def read_image_size(path: str | Path) -> tuple[int, int]:
    """Return (width, height) in pixels from a PNG's header.

    Raises:
        DataError: The file is absent, or no PNG.
    """
    source = Path(path)
    try:
        with source.open("rb") as file:
            head = file.read(24)
    except OSError as error:
        raise DataError(f"{source}: cannot be read ({error.strerror or error})") from error
    if len(head) < 24 or head[:8] != b"\x89PNG\r\n\x1a\n":
        raise DataError(f"{source}: not a PNG image, or cut short: {len(head)} bytes of its header read")
    width, height = struct.unpack(">II", head[16:24])
    return width, height


class KittiFolder:
    """One part of a KITTI tree: ``training`` or ``testing`` with ``velodyne``, ``calib``, ``label_2``, ``image_2``.

    Args:
        root: The folder that holds the part.
        part: "training" or "testing".
        size: Image size (width, height) for frames without an image; only lidar and calibration are needed.

    Raises:
        DataError: The folder, its scans or calibrations are absent, or a scan lacks its calibration or label.
    """

    def __init__(self, root: str | Path, part: str = "training", size: tuple[int, int] = (1242, 375)) -> None:
        self.folder = Path(root) / part
        self.default_size = size
        wanted = ["velodyne", "calib"] + (["label_2"] if part == "training" else [])
        absent = [name for name in wanted if not (self.folder / name).is_dir()]
        if absent:
            raise DataError(
                f"{self.folder}: no folder {', '.join(absent)}; expected KITTI's tree, "
                f"{self.folder / 'velodyne'}/000000.bin and, of the same names, .txt files in {', '.join(wanted[1:])}"
            )
        self.frames = tuple(sorted(path.stem for path in (self.folder / "velodyne").glob("*.bin")))
        if not self.frames:
            raise DataError(f"{self.folder / 'velodyne'}: holds no .bin file")
        for name in wanted[1:]:
            have = {path.stem for path in (self.folder / name).glob("*.txt")}
            missing = [frame for frame in self.frames if frame not in have]
            if missing:
                raise DataError(
                    f"{self.folder / name}: no file for {len(missing)} of {len(self.frames)} scans, first "
                    f"{missing[0]}.txt; add it or remove the scan (a frame without objects has an empty label)"
                )

    def points(self, frame: str) -> Tensor:
        """Return a frame's scan (N, 4)."""
        return read_points(self.folder / "velodyne" / f"{frame}.bin")

    def calibration(self, frame: str) -> Calibration:
        """Return a frame's calibration."""
        return read_calibration(self.folder / "calib" / f"{frame}.txt")

    def objects(self, frame: str) -> Objects:
        """Return a frame's labels."""
        return read_objects(self.folder / "label_2" / f"{frame}.txt")

    def size(self, frame: str) -> tuple[int, int]:
        """Return a frame's image size (width, height): its image's, or the folder's where there is no image."""
        image = self.folder / "image_2" / f"{frame}.png"
        return read_image_size(image) if image.exists() else self.default_size
