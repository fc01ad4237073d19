"""The network over the map seen from above: convolutions at several strides, brought back to one and joined."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..core.errors import ConfigError


class BEVBackbone(nn.Module):
    """Levels of 3 x 3 convolutions, each level's result up-sampled to the first one's stride, all joined.

    Args:
        in_channels: Channels of the map that comes in.
        depths: Convolutions of each level after its first, strided one.
        strides: Stride of each level's first convolution.
        widths: Channels of each level.
        up_widths: Channels of each level's result.
        norm_momentum: Weight of a batch in the running statistics of the batch norms.

    Attributes:
        out_channels: Channels that come out, ``sum(up_widths)``.
        stride: Cells of the map that come in for each that comes out, along each side.
        multiple: Cells along each side must be a multiple of this.

    Raises:
        ConfigError: The arguments' lengths differ, or a number is too small.

    Source:
        Yan et al., SECOND: sparsely embedded convolutional detection (2018), section 3.1.3; Lang et al., PointPillars
        (2019), section 2.2.
    """

    def __init__(
        self,
        in_channels: int,
        depths: Sequence[int] = (5, 5),
        strides: Sequence[int] = (1, 2),
        widths: Sequence[int] = (128, 256),
        up_widths: Sequence[int] = (256, 256),
        norm_momentum: float = 0.01,
    ) -> None:
        super().__init__()

        def norm(width: int) -> list[nn.Module]:
            return [nn.BatchNorm2d(width, eps=1e-3, momentum=norm_momentum), nn.ReLU()]

        parts = {"depths": depths, "strides": strides, "widths": widths, "up_widths": up_widths}
        for name, part in parts.items():
            if len(part) != len(depths) or not part or min(part) < (0 if name == "depths" else 1):
                raise ConfigError(
                    f"BEVBackbone: {name} is {tuple(part)} beside depths {tuple(depths)}, expected a positive number "
                    "for each level"
                )
        self.levels, self.ups = nn.ModuleList(), nn.ModuleList()
        width = in_channels
        for level, (depth, stride, out, up_width) in enumerate(zip(depths, strides, widths, up_widths, strict=True)):
            layers: list[nn.Module] = [nn.Conv2d(width, out, 3, stride, 1, bias=False), *norm(out)]
            for _ in range(depth):
                layers += [nn.Conv2d(out, out, 3, 1, 1, bias=False), *norm(out)]
            self.levels.append(nn.Sequential(*layers))
            back = math.prod(strides[1 : level + 1])
            self.ups.append(nn.Sequential(nn.ConvTranspose2d(out, up_width, back, back, bias=False), *norm(up_width)))
            width = out
        self.in_channels, self.out_channels = in_channels, sum(up_widths)
        self.stride, self.multiple = strides[0], math.prod(strides)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H / stride, W / stride).

        Raises:
            ValueError: H or W is no multiple of :attr:`multiple`.
        """
        if x.shape[2] % self.multiple or x.shape[3] % self.multiple:
            raise ValueError(
                f"BEVBackbone: the map has {x.shape[2]} x {x.shape[3]} cells, expected multiples of {self.multiple}, "
                "the product of the strides"
            )
        found = []
        for level, up in zip(self.levels, self.ups, strict=True):
            x = level(x)
            found.append(up(x))
        return torch.cat(found, 1)
