"""The network over the map seen from above: convolutions at several strides, brought back to one and joined."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..core.errors import ConfigError


def _norm(width: int) -> list[nn.Module]:
    return [nn.BatchNorm2d(width, eps=1e-3, momentum=0.01), nn.ReLU()]


class BEVBackbone(nn.Module):
    """Levels of 3 x 3 convolutions, each level's result up-sampled to the first one's stride, all joined.

    Args:
        in_channels: Channels of the map that comes in.
        depths: Convolutions of each level after its first, strided one.
        strides: Stride of each level's first convolution.
        widths: Channels of each level.
        up_strides: By how much each level's result is up-sampled.
        up_widths: Channels of each level's result.

    Attributes:
        out_channels: Channels that come out, ``sum(up_widths)``.
        stride: Cells of the map that come in for each that comes out.

    Raises:
        ConfigError: The arguments' lengths differ, or the levels do not come back to one stride.

    Source:
        Yan et al., SECOND: sparsely embedded convolutional detection (2018), section 3.1.3; Lang et al., PointPillars
        (2019), section 2.2.
    """

    def __init__(
        self,
        in_channels: int,
        depths: Sequence[int],
        strides: Sequence[int],
        widths: Sequence[int],
        up_strides: Sequence[int],
        up_widths: Sequence[int],
    ) -> None:
        super().__init__()
        lengths = {len(part) for part in (depths, strides, widths, up_strides, up_widths)}
        if len(lengths) != 1:
            raise ConfigError(f"BEVBackbone: the levels' arguments have lengths {sorted(lengths)}, expected one length")
        self.levels, self.ups = nn.ModuleList(), nn.ModuleList()
        total, found, width = 1, set(), in_channels
        for depth, stride, out, up_stride, up_width in zip(depths, strides, widths, up_strides, up_widths, strict=True):
            layers: list[nn.Module] = [nn.Conv2d(width, out, 3, stride, 1, bias=False), *_norm(out)]
            for _ in range(depth):
                layers += [nn.Conv2d(out, out, 3, 1, 1, bias=False), *_norm(out)]
            self.levels.append(nn.Sequential(*layers))
            up = nn.ConvTranspose2d(out, up_width, up_stride, up_stride, bias=False)
            self.ups.append(nn.Sequential(up, *_norm(up_width)))
            total, width = total * stride, out
            found.add(total / up_stride)
        if len(found) != 1 or not (stride := found.pop()).is_integer():
            raise ConfigError(
                f"BEVBackbone: strides {list(strides)} with up_strides {list(up_strides)} leave the levels at different "
                "strides, or one that is no whole number"
            )
        self.stride, self.total, self.out_channels = int(stride), total, sum(up_widths)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H / stride, W / stride).

        Raises:
            ValueError: H or W is no multiple of the levels' strides.
        """
        if x.shape[2] % self.total or x.shape[3] % self.total:
            raise ValueError(
                f"BEVBackbone: the map has {x.shape[2]} x {x.shape[3]} cells, expected multiples of {self.total}, the "
                "product of the strides"
            )
        found = []
        for level, up in zip(self.levels, self.ups, strict=True):
            x = level(x)
            found.append(up(x))
        return torch.cat(found, 1)
