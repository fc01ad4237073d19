"""SECOND's middle: sparse convolutions from fine voxels to a map an eighth as fine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from ..core.errors import ConfigError
from .sparse import SparseConv3d, SubMConv3d
from .voxels import BatchNorm, Voxels


class _Layer(nn.Module):
    """A sparse convolution, a norm, and the ReLU."""

    def __init__(self, conv: SubMConv3d | SparseConv3d, width: int) -> None:
        super().__init__()
        self.conv, self.norm = conv, BatchNorm(width)

    def forward(self, voxels: Voxels) -> Voxels:
        y: Voxels = self.conv(voxels)
        return y.with_features(self.norm(y.features).relu())


class SparseEncoder(nn.Module):
    """Submanifold convolutions at each of several scales, strided ones between, the height closed at the end.

    Args:
        in_channels: Features of the voxels that come in.
        grid: Voxels along z, y and x.
        widths: Features at each scale; the grid is halved between.
        out_channels: Features after the last convolution, which strides along z alone.

    Attributes:
        out_channels: Channels of the map seen from above.
        stride: Voxels along x and y for each cell of the map.

    Raises:
        ConfigError: The grid is too low.

    Source:
        Yan et al., SECOND: sparsely embedded convolutional detection (2018), section 3.1.2 and figure 3; widths and
        paddings: the authors' release.
    """

    def __init__(
        self,
        in_channels: int,
        grid: tuple[int, int, int],
        widths: Sequence[int] = (16, 32, 64, 64),
        out_channels: int = 128,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [_Layer(SubMConv3d(in_channels, widths[0]), widths[0])]
        height, width = grid[0], widths[0]
        for scale, out in enumerate(widths):
            if scale:
                # The release leaves the last of its four scales without padding along z.
                padding: Any = (0, 1, 1) if scale == 3 else 1
                layers.append(_Layer(SparseConv3d(width, out, 3, 2, padding), out))
                height = (height + (0 if scale == 3 else 2) - 3) // 2 + 1
            else:
                layers.append(_Layer(SubMConv3d(width, out), out))
                width = out
                continue
            layers += [_Layer(SubMConv3d(out, out), out) for _ in range(2)]
            width = out
        layers.append(_Layer(SparseConv3d(width, out_channels, (3, 1, 1), (2, 1, 1)), out_channels))
        height = (height - 3) // 2 + 1
        if height < 1:
            raise ConfigError(f"SparseEncoder: a grid {grid[0]} voxels high leaves nothing after the last convolution")
        self.layers = nn.Sequential(*layers)
        self.out_channels, self.stride = out_channels * height, 2 ** (len(widths) - 1)

    def forward(self, voxels: Voxels) -> Voxels:
        """Convolve voxels."""
        y: Voxels = self.layers(voxels)
        return y
