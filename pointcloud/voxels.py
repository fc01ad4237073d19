"""Points in voxels: which voxel a point lies in, and a learned summary of the points of each."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import ConfigError


@dataclass(frozen=True)
class Voxels:
    """The voxels of a batch that hold something.

    Attributes:
        features: (V, C).
        coords: (V, 4) int64: batch entry, z, y, x; each voxel once.
        shape: Voxels of the whole grid along z, y and x.
        batch_size: Batch entries, empty ones among them.
        pairs: Which voxels are neighbours, as sparse convolutions over the same voxels found it.
    """

    features: Tensor
    coords: Tensor
    shape: tuple[int, int, int]
    batch_size: int
    pairs: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.coords)

    def with_features(self, features: Tensor) -> Voxels:
        """Return the same voxels with other features (V, D)."""
        return replace(self, features=features)

    def to_bev(self) -> Tensor:
        """Return the dense map seen from above, (B, C * Z, Y, X): features c at heights z in channel c * Z + z."""
        z, y, x = self.shape
        channels = self.features.shape[1]
        flat = flat_index(self.coords, self.shape)
        grid = self.features.new_zeros(self.batch_size * z * y * x, channels).index_copy(0, flat, self.features)
        return grid.view(self.batch_size, z, y, x, channels).permute(0, 4, 1, 2, 3).flatten(1, 2)


def flat_index(coords: Tensor, shape: Sequence[int]) -> Tensor:
    """Return ``((b Z + z) Y + y) X + x`` of coords (V, 4), (V,) int64."""
    z, y, x = shape
    b, i, j, k = coords.unbind(1)
    return ((b * z + i) * y + j) * x + k


def unflatten_index(flat: Tensor, shape: Sequence[int]) -> Tensor:
    """Return coords (V, 4) of what :func:`flat_index` gave."""
    parts = []
    for size in reversed(shape):
        parts.append(flat % size)
        flat = flat // size
    return torch.stack([flat, *reversed(parts)], 1)


def scatter_add(values: Tensor, index: Tensor, size: int) -> Tensor:
    """Return the sums (size, C) of the rows of values (N, C) with the same index (N,)."""
    return values.new_zeros(size, values.shape[1]).index_add(0, index, values)


def scatter_mean(values: Tensor, index: Tensor, size: int) -> Tensor:
    """Return the means (size, C) of the rows of values (N, C) with the same index (N,); 0 where there is none."""
    counts = torch.bincount(index, minlength=size).clamp(min=1)
    return scatter_add(values, index, size) / counts.unsqueeze(1)


def scatter_max(values: Tensor, index: Tensor, size: int) -> Tensor:
    """Return the maxima (size, C) of the rows of values (N, C) with the same index (N,); 0 where there is none."""
    start = values.new_zeros(size, values.shape[1])
    return start.scatter_reduce(0, index.unsqueeze(1).expand_as(values), values, "amax", include_self=False)


def largest(values: Tensor, entry: Tensor, counts: Tensor) -> Tensor:
    """Return which rows are the counts[b] (B,) largest of values (N,) in each batch entry b; entry (N,) is each row's.

    Entries follow each other, each with its largest first; of equals the earlier row counts as larger.
    """
    order = torch.argsort(values, descending=True, stable=True)
    order = order[torch.argsort(entry[order], stable=True)]
    found, ordered = torch.bincount(entry, minlength=len(counts)), entry[order]
    rank = torch.arange(len(order), device=order.device) - (torch.cumsum(found, 0) - found)[ordered]
    return order[rank < counts[ordered]]


@dataclass(frozen=True)
class VoxelGrid:
    """A box of space cut into voxels.

    Attributes:
        point_range: Least x, y, z and greatest x, y, z, metres; the greatest lie outside.
        voxel_size: A voxel's x, y and z, metres.
        max_voxels: The most voxels of one frame; of more, those with the most points stay.

    Raises:
        ConfigError: The range is empty, or no multiple of the size.
    """

    point_range: tuple[float, float, float, float, float, float]
    voxel_size: tuple[float, float, float]
    max_voxels: int = 160_000

    def __post_init__(self) -> None:
        for axis, low, high, size in zip("xyz", self.point_range, self.point_range[3:], self.voxel_size, strict=False):
            if not (size > 0 and high > low):
                raise ConfigError(f"voxels: along {axis} the range is {low} to {high} and the size {size}")
            count = (high - low) / size
            if abs(count - round(count)) > 1e-3:
                raise ConfigError(
                    f"voxels: along {axis} the range {low} to {high} holds {count:.3f} voxels of {size} m, expected a "
                    "whole number"
                )

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along z, y and x."""
        x, y, z = (
            round((self.point_range[axis + 3] - self.point_range[axis]) / self.voxel_size[axis]) for axis in range(3)
        )
        return z, y, x

    def locate(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return which points lie in the grid, and the voxels of these.

        Args:
            points: (N, 1 + F): batch entry, x, y, z in metres, and more.

        Returns:
            inside: (N,) bool.
            coords: (M, 4) int64, the voxel of each point inside: batch entry, z, y, x.
        """
        low = points.new_tensor(self.point_range[:3])
        place = ((points[:, 1:4] - low) / points.new_tensor(self.voxel_size)).floor()
        size = points.new_tensor(self.shape[::-1])
        inside = ((place >= 0) & (place < size)).all(1)
        return inside, torch.cat([points[inside, :1].long(), place[inside].long().flip(1)], 1)

    def assign(self, points: Tensor, batch_size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Sort points into voxels.

        Args:
            points: (N, 1 + F): batch entry, x, y, z in metres, and more.
            batch_size: Batch entries.

        Returns:
            points: Those inside, (M, 1 + F).
            coords: The voxels that hold them, (V, 4) int64, in the order of batch entry, z, y, x.
            voxel: Each point's row of ``coords``, (M,) int64.
        """
        inside, coords = self.locate(points)
        points = points[inside]
        flat, voxel, counts = torch.unique(flat_index(coords, self.shape), return_inverse=True, return_counts=True)
        kept = self._keep(flat, counts, batch_size)
        if kept is not None:
            row = torch.cumsum(kept, 0) - 1
            points, voxel = points[kept[voxel]], row[voxel[kept[voxel]]]
            flat = flat[kept]
        return points, unflatten_index(flat, self.shape), voxel

    def _keep(self, flat: Tensor, counts: Tensor, batch_size: int) -> Tensor | None:
        """Return which voxels stay, (V,) bool, or None for all."""
        sample = flat // math.prod(self.shape)
        found = torch.bincount(sample, minlength=batch_size)
        if len(found) == 0 or int(found.max()) <= self.max_voxels:
            return None
        kept = torch.zeros_like(flat, dtype=torch.bool)
        kept[largest(counts, sample, torch.full_like(found, self.max_voxels))] = True
        warnings.warn(
            f"voxels: a frame has {int(found.max())} voxels, more than max_voxels = {self.max_voxels}; the "
            f"{self.max_voxels} with the most points stay, {int((~kept).sum())} of the batch are dropped",
            stacklevel=3,
        )
        return kept


class BatchNorm(nn.BatchNorm1d):
    """Batch norm as detectors have it, which takes its running statistics where a batch holds less than two rows."""

    def __init__(self, features: int, eps: float = 1e-3, momentum: float = 0.01) -> None:
        super().__init__(features, eps=eps, momentum=momentum)

    def forward(self, x: Tensor) -> Tensor:
        """Norm x (N, C)."""
        if self.training and len(x) > 1:
            return super().forward(x)
        return nn.functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


class VoxelEncoder(nn.Module):
    """A vector for each voxel from any number of points: linear maps, norms, and maxima over the points.

    A point comes with its offsets from the mean of its voxel's points and from the voxel's centre. Every layer but the
    last gives half of its features and the maximum of these over the voxel; the last the maximum alone.

    Args:
        grid: The voxels.
        in_features: Values of a point: x, y, z and more.
        widths: Features after each layer.
        norm_momentum: Weight of a batch in the running statistics of the batch norms.

    Source:
        Zhou and Tuzel, VoxelNet (2018), section 2.1.2; Zhou et al., End-to-end multi-view fusion for 3D object
        detection in LiDAR point clouds (2020), section 3.1, on voxels that hold all of their points.
    """

    def __init__(
        self, grid: VoxelGrid, in_features: int = 4, widths: Sequence[int] = (64, 64), norm_momentum: float = 0.01
    ) -> None:
        super().__init__()
        self.grid, self.in_features, self.out_channels = grid, in_features, widths[-1]
        width, layers = in_features + 6, []
        for i, out in enumerate(widths):
            inner = out if i + 1 == len(widths) else out // 2
            norm = BatchNorm(inner, momentum=norm_momentum)
            layers.append(nn.Sequential(nn.Linear(width, inner, bias=False), norm, nn.ReLU()))
            width = out
        self.layers = nn.ModuleList(layers)

    def forward(self, points: Tensor, batch_size: int) -> Voxels:
        """Summarise points.

        Args:
            points: (N, 1 + in_features): batch entry, x, y, z in metres, and more.
            batch_size: Batch entries.

        Returns:
            The voxels that hold points.

        Raises:
            ValueError: A point has another number of values.
        """
        if points.dim() != 2 or points.shape[1] != 1 + self.in_features:
            raise ValueError(
                f"voxels: points have shape {tuple(points.shape)}, expected (points, 1 + {self.in_features}): the "
                "batch entry and a point's values"
            )
        points, coords, voxel = self.grid.assign(points, batch_size)
        x = self._describe(points, coords, voxel)
        for i, layer in enumerate(self.layers):
            x = layer(x)
            most = scatter_max(x, voxel, len(coords))
            if i + 1 < len(self.layers):
                x = torch.cat([x, most[voxel]], 1)
        return Voxels(most, coords, self.grid.shape, batch_size)

    def _describe(self, points: Tensor, coords: Tensor, voxel: Tensor) -> Tensor:
        values, place = points[:, 1:], points[:, 1:4]
        size, low = points.new_tensor(self.grid.voxel_size), points.new_tensor(self.grid.point_range[:3])
        center = low + (coords[:, 1:].flip(1).to(points.dtype) + 0.5) * size
        mean = scatter_mean(place, voxel, len(coords))
        return torch.cat([values, place - mean[voxel], place - center[voxel]], 1)


class MeanVoxels(nn.Module):
    """The mean of the points of each voxel.

    Args:
        grid: The voxels.
        in_features: Values of a point.
    """

    def __init__(self, grid: VoxelGrid, in_features: int = 4) -> None:
        super().__init__()
        self.grid, self.out_channels = grid, in_features

    def forward(self, points: Tensor, batch_size: int) -> Voxels:
        """Summarise points (N, 1 + in_features)."""
        points, coords, voxel = self.grid.assign(points, batch_size)
        return Voxels(scatter_mean(points[:, 1:], voxel, len(coords)), coords, self.grid.shape, batch_size)
