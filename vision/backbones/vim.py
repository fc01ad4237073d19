"""Vision Mamba (Vim): selective scans through the patches in both directions."""

from __future__ import annotations

from functools import partial
from typing import Any

from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from ...core.mixers.bimamba import BiMamba
from .entry import checkpoint_filter_fn as checkpoint_filter_fn
from .entry import config, create
from .isotropic import Isotropic, Site, Size, TokenBlock


class VimMixer(BiMamba):
    """:class:`~scanweave.core.mixers.bimamba.BiMamba` over tokens, the class token among them."""

    def forward(self, x: Tensor, size: Size | None = None) -> Tensor:
        """Mix tokens x (B, L, dim); the grid's size is not asked."""
        y: Tensor = super().forward(x)
        return y


class Vim(Isotropic):
    """Vision Mamba: 24 blocks of (RMSNorm, :class:`VimMixer`), a class token in the middle, learned positions.

    Args:
        d_state: States per channel.
        kwargs: As of :class:`Isotropic`.

    Source:
        Zhu et al., Vision Mamba: efficient visual representation learning with bidirectional state space model (2024).
    """

    def __init__(self, *, d_state: int = 16, **kwargs: Any) -> None:
        norm = partial(nn.RMSNorm, eps=1e-5)

        def block(site: Site) -> nn.Module:
            return TokenBlock(site, VimMixer(site.dim, d_state), norm)

        super().__init__(
            block, **{"class_token": "middle", "global_pool": "token", "norm": norm, "depth": 24, **kwargs}
        )


default_cfgs = generate_default_cfgs({name: config() for name in ("vim_tiny", "vim_small", "vim_base")})


@register_model
def vim_tiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Vim-T: width 192, 7 M parameters."""
    return create(Vim, "vim_tiny", pretrained, **{"embed_dim": 192, **kwargs})


@register_model
def vim_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Vim-S: width 384, 26 M parameters."""
    return create(Vim, "vim_small", pretrained, **{"embed_dim": 384, **kwargs})


@register_model
def vim_base(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Vim-B: width 768, 98 M parameters."""
    return create(Vim, "vim_base", pretrained, **{"embed_dim": 768, **kwargs})
