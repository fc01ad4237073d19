"""ViM2: MambaMixer for images, which mixes selectively over the grid and over the channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from timm.layers import DropPath
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from ...core import Bidirectional, create_mixer
from ...core.blocks import WeightedAverage
from ...core.errors import ConfigError
from .entry import config
from .hierarchical import Hierarchical, Stage, create
from .hierarchical import checkpoint_filter_fn as checkpoint_filter_fn
from .isotropic import Site
from .vmamba import SS2D


class ChannelMixer(nn.Module):
    """A selective scan over each token's channels, from the first to the last and back.

    ``u, z = W_in x``; u's channels, a group a step, are a sequence s; ``y = W_out (silu(z) * (f(s) + g(s reversed)))``
    with f and g two Mamba mixers as wide as a group. No weight depends on how many tokens there are.

    Args:
        dim: Features.
        ratio: Channels inside, in multiples of dim.
        group: Neighbouring channels that make a step of the scan.

    Raises:
        ConfigError: ``group`` does not divide the channels inside.

    Source:
        Behrouz et al., MambaMixer (2024), on the selective channel mixer. There a step is one channel of all tokens,
        which ties the weights to one image size; groups of channels of one token are this package's.
    """

    def __init__(self, dim: int, ratio: float = 2.0, group: int = 8) -> None:
        super().__init__()
        width, self.group = int(ratio * dim), group
        if group < 1 or width % group:
            raise ConfigError(f"ChannelMixer: group is {group}, expected a divisor of the {width} channels inside")
        self.in_proj = nn.Linear(dim, 2 * width, bias=False)
        self.scan = Bidirectional(*(create_mixer("mamba", group, d_state=1, expand=1) for _ in range(2)))
        self.out_proj = nn.Linear(width, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Mix a grid (B, H, W, dim)."""
        u, z = self.in_proj(x).chunk(2, -1)
        mixed, _ = self.scan(u.unflatten(-1, (-1, self.group)).flatten(0, 2))
        y: Tensor = self.out_proj(mixed.reshape(z.shape) * F.silu(z))
        return y


class Residual(nn.Module):
    """``x + mixer(norm(x))``.

    Args:
        site: Where it stands.
        mixer: Maps a grid (B, H, W, C) to the same.
    """

    def __init__(self, site: Site, mixer: nn.Module) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(site.dim)
        self.mixer = mixer
        self.drop_path = DropPath(site.drop_path) if site.drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map a grid (B, H, W, C)."""
        y: Tensor = x + self.drop_path(self.mixer(self.norm(x)))
        return y


class AveragedStage(Stage):
    """A stage in which each mixer reads a learned average of all that the mixers before it gave.

    ``h_0`` is the stage's input, ``h_i = x_i + f_i(norm(x_i))`` with ``x_i = sum_{j < i} a_ij h_j``; the output is such
    an average of all h. At the start each average is the last h alone.

    Args:
        blocks: Pairs of residual mixers, over the grid and over the channels.
        dim_in: Features of the stage before; None for the first stage.
        dim: Features.

    Source:
        Behrouz et al., MambaMixer (2024), on weighted averaging of earlier features.
    """

    def __init__(self, blocks: Sequence[nn.Module], dim_in: int | None, dim: int) -> None:
        super().__init__(blocks, dim_in, dim)
        self.averages = nn.ModuleList(WeightedAverage(count) for count in range(1, 2 * len(blocks) + 2))

    def mix(self, x: Tensor) -> Tensor:
        """Run the blocks over a grid (B, H, W, dim)."""
        found = [x]
        mixers = [mixer for pair in self.blocks for mixer in pair]  # type: ignore[attr-defined]
        for average, mixer in zip(self.averages, mixers, strict=False):
            found.append(self.run(mixer, average(found)))
        y: Tensor = self.averages[-1](found)
        return y


class ViM2(Hierarchical):
    """Four stages that scan the grid four ways and the channels two ways, and average what came before.

    Args:
        ssm_ratio: The grid scans' channels in multiples of the width.
        d_state: States per channel of the grid scans.
        channel_ratio: The channel scans' channels in multiples of the width.
        group: Neighbouring channels that make a step of a channel scan.
        kwargs: As of :class:`Hierarchical`.

    Source:
        Behrouz et al., MambaMixer: efficient selective state space models with dual token and channel selection (2024),
        on ViM2. No code of it was released: depths and widths are chosen here so that the parameters number as
        published, and averages stay within a stage, whose grids are of one size.
    """

    def __init__(
        self,
        *,
        ssm_ratio: float = 2.0,
        d_state: int = 1,
        channel_ratio: float = 2.0,
        group: int = 8,
        **kwargs: Any,
    ) -> None:
        def block(site: Site) -> nn.Module:
            over_grid = Residual(site, SS2D(site.dim, ssm_ratio, d_state))
            return nn.Sequential(over_grid, Residual(site, ChannelMixer(site.dim, channel_ratio, group)))

        super().__init__(block, stage=AveragedStage, **kwargs)


_names = ("vim2_tiny", "vim2_small", "vim2_base")
default_cfgs = generate_default_cfgs(
    {name: config(first_conv="patch_embed.0", classifier="head.fc", pool_size=(7, 7)) for name in _names}
)


@register_model
def vim2_tiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ViM2-T: widths from 80, depths 2-2-6-2."""
    return create(ViM2, "vim2_tiny", pretrained, **{"depths": (2, 2, 6, 2), "dims": (80, 160, 320, 640), **kwargs})


@register_model
def vim2_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ViM2-S: widths from 96, depths 2-2-15-2."""
    return create(ViM2, "vim2_small", pretrained, **{"depths": (2, 2, 15, 2), **kwargs})


@register_model
def vim2_base(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ViM2-B: widths from 128, depths 2-3-14-2."""
    return create(ViM2, "vim2_base", pretrained, **{"depths": (2, 3, 14, 2), "dims": (128, 256, 512, 1024), **kwargs})
