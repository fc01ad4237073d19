"""Detectors by name: the published ones, and smaller ones that train on a CPU."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..core.errors import ConfigError, nearest
from .anchors import KITTI_CLASSES, AnchorClass
from .bev import BEVBackbone
from .detector import Detector
from .head import Suppression
from .lion import LION, Window
from .operators import OPERATORS
from .second import SECOND
from .voxels import MeanVoxels, VoxelEncoder, VoxelGrid

Range = tuple[float, float, float, float, float, float]
Triple = tuple[float, float, float]


def lion(
    classes: Sequence[AnchorClass],
    *,
    mixer: str = "mamba",
    mixer_options: dict[str, Any] | None = None,
    point_range: Range = (0.0, -40.0, -3.0, 70.4, 40.0, 1.0),
    voxel_size: Triple = (0.2, 0.2, 0.125),
    max_voxels: int = 160_000,
    in_features: int = 4,
    dim: int = 64,
    windows: Sequence[Window] = ((13, 13, 32), (13, 13, 16), (13, 13, 8), (13, 13, 4)),
    groups: Sequence[int] = (4096, 2048, 1024, 512),
    last_window: Window = (13, 13, 2),
    last_group: int = 256,
    generate: float = 0.2,
    drop_path: float = 0.2,
    recompute: bool = True,
    depths: Sequence[int] = (5, 5),
    strides: Sequence[int] = (1, 2),
    widths: Sequence[int] = (128, 256),
    up_widths: Sequence[int] = (256, 256),
    norm_momentum: float = 0.01,
    suppression: Suppression | None = None,
) -> Detector:
    """Build LION's detector; the defaults are those published for KITTI.

    Args:
        classes: The classes' anchors.
        mixer: One of LION's five operators or any registered mixer of series.
        mixer_options: The registered mixer's own arguments.
        point_range: Least x, y, z and greatest x, y, z that are looked at, metres.
        voxel_size: A voxel's x, y and z, metres.
        max_voxels: The most voxels of one frame.
        in_features: Values of a point: x, y, z and more.
        dim: Features of a voxel.
        windows: As of :class:`~scanweave.pointcloud.lion.LION`; so are the next six.
        groups: Voxels of each block's sequences.
        last_window: The last layer's window.
        last_group: The last layer's sequences.
        generate: Share of the voxels that give rise to new ones after each block.
        drop_path: Chance that a group skips the last operator in training.
        recompute: Whether training computes the operators' activations again instead of keeping them.
        depths: As of :class:`~scanweave.pointcloud.bev.BEVBackbone`; so are the next three.
        strides: Each level's stride.
        widths: Each level's channels.
        up_widths: Channels of each level's result.
        norm_momentum: Weight of a batch in the running statistics of the batch norms that are not LION's.
        suppression: Which boxes become detections.

    Returns:
        The detector, freshly initialised.

    Raises:
        ConfigError: Sizes do not fit together, a name is unknown, or spconv is not there.

    Source:
        Liu et al., LION: linear group RNN for 3D object detection in point clouds (2024), section 3 and the authors'
        configuration.
    """
    grid = VoxelGrid(point_range, voxel_size, max_voxels)
    reader = VoxelEncoder(grid, in_features, (dim, dim), norm_momentum)
    middle = LION(
        dim,
        grid.shape[0],
        operator=mixer,
        operator_options=mixer_options,
        dim=dim,
        windows=windows,
        groups=groups,
        last_window=last_window,
        last_group=last_group,
        generate=generate,
        drop_path=drop_path,
        recompute=recompute,
    )
    bev = BEVBackbone(middle.out_channels, depths, strides, widths, up_widths, norm_momentum)
    return Detector(reader, middle, bev, classes, suppression)


def pointpillars(
    classes: Sequence[AnchorClass],
    *,
    point_range: Range = (0.0, -39.68, -3.0, 69.12, 39.68, 1.0),
    pillar_size: tuple[float, float] = (0.16, 0.16),
    max_voxels: int = 40_000,
    in_features: int = 4,
    dim: int = 64,
    depths: Sequence[int] = (3, 5, 5),
    strides: Sequence[int] = (2, 2, 2),
    widths: Sequence[int] = (64, 128, 256),
    up_widths: Sequence[int] = (128, 128, 128),
    norm_momentum: float = 0.01,
    suppression: Suppression | None = None,
) -> Detector:
    """Build PointPillars; the defaults are those published for KITTI, but that a pillar holds all of its points.

    Args:
        classes: The classes' anchors.
        point_range: Least x, y, z and greatest x, y, z that are looked at, metres.
        pillar_size: A pillar's x and y, metres; it is as high as the range.
        max_voxels: The most pillars of one frame.
        in_features: Values of a point: x, y, z and more.
        dim: Features of a pillar.
        depths: As of :class:`~scanweave.pointcloud.bev.BEVBackbone`; so are the next three.
        strides: Each level's stride.
        widths: Each level's channels.
        up_widths: Channels of each level's result.
        norm_momentum: Weight of a batch in the running statistics of the batch norms.
        suppression: Which boxes become detections.

    Returns:
        The detector, freshly initialised.

    Raises:
        ConfigError: Sizes do not fit together.

    Source:
        Lang et al., PointPillars: fast encoders for object detection from point clouds (2019), sections 2 and 4.
    """
    grid = VoxelGrid(point_range, (*pillar_size, point_range[5] - point_range[2]), max_voxels)
    bev = BEVBackbone(dim, depths, strides, widths, up_widths, norm_momentum)
    reader = VoxelEncoder(grid, in_features, (dim,), norm_momentum)
    return Detector(reader, None, bev, classes, suppression)


def second(
    classes: Sequence[AnchorClass],
    *,
    point_range: Range = (0.0, -40.0, -3.0, 70.4, 40.0, 1.0),
    voxel_size: Triple = (0.05, 0.05, 0.1),
    max_voxels: int = 40_000,
    in_features: int = 4,
    sparse_widths: Sequence[int] = (16, 32, 64, 64),
    sparse_out: int = 128,
    depths: Sequence[int] = (5, 5),
    strides: Sequence[int] = (1, 2),
    widths: Sequence[int] = (128, 256),
    up_widths: Sequence[int] = (256, 256),
    norm_momentum: float = 0.01,
    suppression: Suppression | None = None,
) -> Detector:
    """Build SECOND; the defaults are those of its release for KITTI, but that a voxel holds all of its points.

    Args:
        classes: The classes' anchors.
        point_range: Least x, y, z and greatest x, y, z that are looked at, metres.
        voxel_size: A voxel's x, y and z, metres.
        max_voxels: The most voxels of one frame.
        in_features: Values of a point: x, y, z and more.
        sparse_widths: As ``widths`` of :class:`~scanweave.pointcloud.second.SECOND`.
        sparse_out: Features of the voxels that its last convolution gives.
        depths: As of :class:`~scanweave.pointcloud.bev.BEVBackbone`; so are the next three.
        strides: Each level's stride.
        widths: Each level's channels.
        up_widths: Channels of each level's result.
        norm_momentum: Weight of a batch in the running statistics of the batch norms.
        suppression: Which boxes become detections.

    Returns:
        The detector, freshly initialised.

    Raises:
        ConfigError: Sizes do not fit together, or spconv is not there.

    Source:
        Yan et al., SECOND: sparsely embedded convolutional detection (2018), and the authors' later release.
    """
    grid = VoxelGrid(point_range, voxel_size, max_voxels)
    middle = SECOND(in_features, grid.shape[0], sparse_widths, sparse_out, norm_momentum)
    bev = BEVBackbone(middle.out_channels, depths, strides, widths, up_widths, norm_momentum)
    return Detector(MeanVoxels(grid, in_features), middle, bev, classes, suppression)


# One range, and cells of 0.8 m in the head's map, for every small detector, so that they compare. Their trainings are a
# few hundred steps long, which running statistics must follow.
_SMALL: dict[str, Any] = {
    "point_range": (0.0, -25.6, -3.0, 51.2, 25.6, 1.0),
    "depths": (3, 3),
    "widths": (48, 96),
    "up_widths": (64, 64),
    "norm_momentum": 0.1,
}
_SMALL_LION: dict[str, Any] = {
    **_SMALL,
    "voxel_size": (0.4, 0.4, 0.5),
    "dim": 32,
    "windows": ((13, 13, 8), (13, 13, 4)),
    "groups": (512, 256),
    "last_window": (13, 13, 2),
    "last_group": 256,
    "recompute": False,
    "strides": (2, 2),
}


def _lion_presets() -> dict[str, tuple[Callable[..., Detector], Mapping[str, Any]]]:
    found: dict[str, tuple[Callable[..., Detector], Mapping[str, Any]]] = {"lion_kitti_small": (lion, _SMALL_LION)}
    for name in OPERATORS:
        # The release trains xLSTM's operator without dropped paths.
        own = {"mixer": name, **({"drop_path": 0.0} if name == "xlstm" else {})}
        found[f"lion_{name}_kitti"] = (lion, own)
        found[f"lion_{name}_kitti_small"] = (lion, {**_SMALL_LION, **own})
    return found


DETECTORS: dict[str, tuple[Callable[..., Detector], Mapping[str, Any]]] = {
    **_lion_presets(),
    "pointpillars_kitti": (pointpillars, {}),
    "pointpillars_kitti_small": (pointpillars, {**_SMALL, "pillar_size": (0.4, 0.4), "dim": 32, "strides": (2, 2)}),
    "second_kitti": (second, {}),
    "second_kitti_small": (
        second,
        {
            **_SMALL,
            "voxel_size": (0.1, 0.1, 0.1),
            "sparse_widths": (8, 16, 32, 32),
            "sparse_out": 64,
            "strides": (1, 2),
        },
    ),
}
"""For each name what builds the detector, and where its arguments differ from the published ones."""


_KITTI_NAMES = tuple(kind.name for kind in KITTI_CLASSES)


def list_detectors() -> list[str]:
    """Return the names that :func:`create_detector` takes, sorted."""
    return sorted(DETECTORS)


def create_detector(name: str, classes: Sequence[str | AnchorClass] = _KITTI_NAMES, **overrides: Any) -> Detector:
    """Build a detector by its name.

    Args:
        name: One of :func:`list_detectors`: ``{lion_mamba,lion_rwkv,lion_retnet,lion_xlstm,lion_ttt,pointpillars,
            second}_kitti``, the published ones; with ``_small`` after it, one that trains on a CPU;
            ``lion_kitti_small`` for any ``mixer``.
        classes: What is looked for: names of KITTI's classes, or anchors of one's own.
        overrides: Arguments of :func:`lion`, :func:`pointpillars` or :func:`second` to set otherwise.

    Returns:
        The detector, freshly initialised.

    Raises:
        ConfigError: The name, a class or an argument is unknown (the message gives those that are known and the
            nearest), or sizes do not fit together.

    Example:
        >>> from scanweave.pointcloud import create_detector
        >>> create_detector("pointpillars_kitti_small", ["Car"]).classes
        ('Car',)
    """
    if name not in DETECTORS:
        known = list_detectors()
        raise ConfigError(f"there is no detector {name!r}{nearest(name, known)}; there are {', '.join(known)}")
    build, own = DETECTORS[name]
    accepted = [key for key in inspect.signature(build).parameters if key != "classes"]
    for key in overrides:
        if key not in accepted:
            raise ConfigError(
                f"detector {name!r} has no argument {key!r}{nearest(key, accepted)}; it takes {', '.join(accepted)}"
            )
    return build([_find_class(one) for one in classes], **{**own, **overrides})


def _find_class(one: str | AnchorClass) -> AnchorClass:
    if isinstance(one, AnchorClass):
        return one
    known = {kind.name: kind for kind in KITTI_CLASSES}
    if one not in known:
        raise ConfigError(
            f"there are no anchors for class {one!r}{nearest(one, known)}; there are some for {', '.join(known)}; give "
            "an AnchorClass for any other"
        )
    return known[one]
