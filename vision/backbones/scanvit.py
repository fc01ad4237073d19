"""A vision transformer's shell with any mixer in attention's place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from timm.models import generate_default_cfgs, register_model
from torch import nn

from ...core.layouts import create_grid_mixer
from .entry import checkpoint_filter_fn as checkpoint_filter_fn
from .entry import config, create
from .isotropic import Isotropic, OnGrid, Site, TokenBlock


class ScanViT(Isotropic):
    """Blocks of (norm, mixer, norm, MLP) over the grid of patches.

    Args:
        mixer: Any mixer's name: of grids, or of series, which then runs along orders of the grid.
        orders: The orders that a mixer of series runs along.
        mixer_options: The mixer's own arguments.
        mlp_ratio: Hidden features of the feed-forward layers in multiples of the width; 0 leaves them out.
        kwargs: As of :class:`Isotropic`.

    Raises:
        ConfigError: There is no such mixer or order, or it lacks such an argument.
    """

    def __init__(
        self,
        *,
        mixer: str = "gla",
        orders: Sequence[str] = ("raster", "raster-reversed"),
        mixer_options: dict[str, Any] | None = None,
        mlp_ratio: float = 4.0,
        **kwargs: Any,
    ) -> None:
        def block(site: Site) -> nn.Module:
            made = create_grid_mixer(mixer, site.dim, orders=orders, **(mixer_options or {}))
            return TokenBlock(site, OnGrid(made), nn.LayerNorm, mlp_ratio)

        super().__init__(block, **kwargs)


default_cfgs = generate_default_cfgs(
    {name: config() for name in ("scanvit_tiny", "scanvit_small", "scanvit_base", "lightnet_tiny", "lightnet_small")}
)


@register_model
def scanvit_tiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ScanViT, width 192, as ViT-Tiny is."""
    return create(ScanViT, "scanvit_tiny", pretrained, **{"embed_dim": 192, **kwargs})


@register_model
def scanvit_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ScanViT, width 384, as ViT-Small is."""
    return create(ScanViT, "scanvit_small", pretrained, **{"embed_dim": 384, **kwargs})


@register_model
def scanvit_base(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ScanViT, width 768, as ViT-Base is."""
    return create(ScanViT, "scanvit_base", pretrained, **{"embed_dim": 768, **kwargs})


@register_model
def lightnet_tiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """LightNet's mixer, an additive recurrence (Qin et al., 2024), width 192; the size is ours."""
    given = {"embed_dim": 192, "mixer": "lightnet", **kwargs}
    return create(ScanViT, "lightnet_tiny", pretrained, **given)


@register_model
def lightnet_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """LightNet's mixer, width 384; the size is ours."""
    given = {"embed_dim": 384, "mixer": "lightnet", **kwargs}
    return create(ScanViT, "lightnet_small", pretrained, **given)
