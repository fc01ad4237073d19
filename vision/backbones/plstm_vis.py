"""pLSTM-Vis: matrix states that flow over the grid of patches from its four corners."""

from __future__ import annotations

from typing import Any

from timm.models import generate_default_cfgs, register_model
from torch import nn

from ...core.layouts import create_grid_mixer
from .entry import checkpoint_filter_fn as checkpoint_filter_fn
from .entry import config, create
from .isotropic import Isotropic, OnGrid, Site, TokenBlock


class PLSTMVis(Isotropic):
    """Six pairs of blocks (norm, ``plstm2d``, norm, MLP) in P- and D-mode, and a head that sees the four corners.

    Args:
        head_dim: Features of a head.
        modes: The mixers' modes, which the blocks take in turn.
        kwargs: As of :class:`Isotropic`.

    Source:
        Pöppel et al., pLSTM: parallelizable linear source transition mark networks (2025), section 5.
    """

    def __init__(self, *, head_dim: int = 64, modes: str = "PD", **kwargs: Any) -> None:
        def block(site: Site) -> nn.Module:
            mixer = create_grid_mixer("plstm2d", site.dim, mode=modes[site.number % len(modes)], head_dim=head_dim)
            return TokenBlock(site, OnGrid(mixer), nn.LayerNorm, 4.0)

        super().__init__(block, **{"global_pool": "corners", "pos_embed": "sincos", **kwargs})


_NAMES = ("plstm_vis_tiny", "plstm_vis_small", "plstm_vis_base")
default_cfgs = generate_default_cfgs({name: config() for name in _NAMES})


@register_model
def plstm_vis_tiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """pLSTM-Vis-T: width 192, 3 heads."""
    return create(PLSTMVis, "plstm_vis_tiny", pretrained, **{"embed_dim": 192, **kwargs})


@register_model
def plstm_vis_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """pLSTM-Vis-S: width 384, 6 heads."""
    return create(PLSTMVis, "plstm_vis_small", pretrained, **{"embed_dim": 384, **kwargs})


@register_model
def plstm_vis_base(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """pLSTM-Vis-B: width 768, 12 heads."""
    return create(PLSTMVis, "plstm_vis_base", pretrained, **{"embed_dim": 768, **kwargs})
