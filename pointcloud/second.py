"""SECOND's middle network: sparse convolutions that bring voxels to an eighth of the grid's size, seen from above."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from ..core.errors import ConfigError
from .sparse import SparseConv3d, SubMConv3d, Triple
from .voxels import BatchNorm, Voxels


class _Convolution(nn.Module):
    """A sparse convolution with batch norm and ReLU."""

    def __init__(self, conv: nn.Module, channels: int, momentum: float) -> None:
        super().__init__()
        self.conv, self.norm, self.act = conv, BatchNorm(channels, momentum=momentum), nn.ReLU()

    def forward(self, voxels: Voxels) -> Voxels:
        voxels = self.conv(voxels)
        return voxels.with_features(self.act(self.norm(voxels.features)))


class SECOND(nn.Module):
    """Four levels of submanifold convolutions, a strided one between them, and one that halves the height at the end.

    Args:
        in_channels: Features of the voxels that come in.
        grid_height: Voxels of the grid along z.
        widths: Features of the four levels.
        out_width: Features of the voxels that come out.
        norm_momentum: Weight of a batch in the running statistics of the batch norms.

    Attributes:
        out_channels: Channels of the map seen from above that comes out.
        stride: Voxels of the grid along each side of a cell of that map.

    Raises:
        ConfigError: There are not four widths, the grid is too low, or spconv is not there.

    Source:
        Yan et al., SECOND: sparsely embedded convolutional detection (2018), section 3.1.2, with the four levels of
        the authors' later release.
    """

    stride = 8

    def __init__(
        self,
        in_channels: int,
        grid_height: int,
        widths: Sequence[int] = (16, 32, 64, 64),
        out_width: int = 128,
        norm_momentum: float = 0.01,
    ) -> None:
        super().__init__()
        if len(widths) != 4:
            raise ConfigError(f"SECOND: found {len(widths)} widths, expected 4, one for each level")
        first, second, third, fourth = widths

        def same(before: int, after: int) -> _Convolution:
            return _Convolution(SubMConv3d(before, after), after, norm_momentum)

        def strided(before: int, after: int, kernel: Triple, stride: Triple, padding: Triple) -> _Convolution:
            return _Convolution(SparseConv3d(before, after, kernel, stride, padding), after, norm_momentum)

        def level(before: int, after: int, padding: Triple) -> list[_Convolution]:
            return [strided(before, after, 3, 2, padding), same(after, after), same(after, after)]

        self.layers = nn.Sequential(
            same(in_channels, first),
            same(first, first),
            *level(first, second, (1, 1, 1)),
            *level(second, third, (1, 1, 1)),
            *level(third, fourth, (0, 1, 1)),
            strided(fourth, out_width, (3, 1, 1), (2, 1, 1), 0),
        )
        height = grid_height + 1
        for padding in (1, 1, 0, 0):
            height = (height + 2 * padding - 3) // 2 + 1
        if height < 1:
            raise ConfigError(f"SECOND: the grid is {grid_height} voxels high, too few to be halved four times")
        self.out_channels = out_width * height

    def forward(self, voxels: Voxels) -> Voxels:
        """Convolve voxels."""
        z, y, x = voxels.shape
        # One empty layer above, so that halving keeps the top.
        found: Voxels = self.layers(replace(voxels, shape=(z + 1, y, x), pairs={}))
        return found
