"""Vision Retention (ViR): retention over the patches, with the class token last."""

from __future__ import annotations

import math
from typing import Any

import torch
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from ...core.heads import count_heads, split_heads
from ...kernels import gated_linear_attention
from .entry import checkpoint_filter_fn as checkpoint_filter_fn
from .entry import config, create
from .isotropic import Isotropic, Site, Size, TokenBlock


class ViRMixer(nn.Module):
    """Retention without rotation: ``o_t = sum_{s<=t} gamma^(t-s) (q_t . k_s) v_s / sqrt(K)``, then ``W_o norm(o)``.

    ``gamma_h = 1 - exp(linspace(ln 1/32, ln 1/512, heads))``. The last token, the class token, has seen all others.

    Args:
        dim: Features of a token.
        head_dim: Features of a head; None is the largest divisor of dim that is at most 64.

    Source:
        Hatamizadeh et al., ViR: towards efficient vision retention backbones (2023), section 3.
    """

    def __init__(self, dim: int, head_dim: int | None = None) -> None:
        super().__init__()
        self.heads = count_heads("ViR", dim, head_dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.norm = nn.LayerNorm(dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, size: Size) -> Tensor:
        """Mix tokens x (B, L, dim)."""
        q, k, v = (split_heads(part, self.heads) for part in self.qkv(x).chunk(3, -1))
        steps = torch.linspace(math.log(1 / 32), math.log(1 / 512), self.heads, device=x.device)
        o, _ = gated_linear_attention(q, k, v, torch.log1p(-steps.exp()).to(torch.promote_types(x.dtype, steps.dtype)))
        y: Tensor = self.proj(self.norm(o.flatten(-2)))
        return y


class ViR(Isotropic):
    """Vision Retention: blocks of (norm, :class:`ViRMixer`, norm, MLP), learned positions, a class token at the end.

    Args:
        kwargs: As of :class:`Isotropic`.

    Source:
        Hatamizadeh et al., ViR: towards efficient vision retention backbones (2023), section 3 and table 1.
    """

    def __init__(self, **kwargs: Any) -> None:
        def block(site: Site) -> nn.Module:
            return TokenBlock(site, ViRMixer(site.dim), nn.LayerNorm, 4.0)

        super().__init__(block, **{"class_token": "last", "global_pool": "token", **kwargs})


default_cfgs = generate_default_cfgs({name: config() for name in ("vir_small", "vir_base", "vir_large")})


@register_model
def vir_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ViR-S: width 384, 12 blocks."""
    return create(ViR, "vir_small", pretrained, **{"embed_dim": 384, **kwargs})


@register_model
def vir_base(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ViR-B: width 768, 12 blocks."""
    return create(ViR, "vir_base", pretrained, **{"embed_dim": 768, **kwargs})


@register_model
def vir_large(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ViR-L: width 1024, 24 blocks."""
    given = {"embed_dim": 1024, "depth": 24, **kwargs}
    return create(ViR, "vir_large", pretrained, **given)
