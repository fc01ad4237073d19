"""Vision-LSTM (ViL): mLSTM blocks that read the patches from the top left and from the bottom right in turn."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from ...core.heads import count_heads
from ...core.mixers.mlstm import BlockLinear, MLSTMCell
from ...core.parameters import undecayed, widen
from ...kernels import MLSTMState
from .entry import checkpoint_filter_fn as checkpoint_filter_fn
from .entry import config, create
from .isotropic import Isotropic, Site, Size, TokenBlock


class ViLLayer(nn.Module):
    """The mLSTM layer of images: a 3 x 3 convolution in front of q and k, and one direction through the patches.

    ``u, z = W_up x``; ``c = silu(conv(u))``; q and k from c, v from u, by blocks of 4;
    ``W_down ((norm(mlstm_scan(q, k, v, i, f)) + skip * c) * silu(z))``.

    Args:
        dim: Features of a token.
        backwards: Whether it reads from the bottom right.
        expand: Channels inside, in multiples of dim.
        heads: Heads.

    Source:
        Alkin et al., Vision-LSTM: xLSTM as generic vision backbone (2024), section 3; biases: its second version.
    """

    def __init__(self, dim: int, backwards: bool, expand: int = 2, heads: int = 4) -> None:
        super().__init__()
        width, std = expand * dim, (2 / (5 * dim)) ** 0.5
        blocks = count_heads("ViL", width, None, at_most=4)
        self.backwards, self.heads = backwards, heads
        self.proj_up = nn.Linear(dim, 2 * width)
        self.q_proj, self.k_proj, self.v_proj = (BlockLinear(width, blocks, std, bias=True) for _ in range(3))
        self.conv = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.mlstm_cell = MLSTMCell(heads, width // heads, bias=True)
        self.learnable_skip = undecayed(torch.ones(width))
        self.proj_down = nn.Linear(width, dim)
        nn.init.normal_(self.proj_up.weight, std=std)
        nn.init.normal_(self.proj_down.weight, std=2 / dim**0.5)

    def forward(self, x: Tensor, size: Size) -> Tensor:
        """Mix tokens x (B, H W, dim)."""
        if self.backwards:
            x = x.flip(1)
        u, z = self.proj_up(x).chunk(2, -1)
        c = F.silu(self.conv(u.unflatten(1, size).movedim(-1, 1)).movedim(1, -1).flatten(1, 2))
        width, dtype = u.shape[-1] // self.heads, widen(u[:0]).dtype
        shapes = (width, width), (width,), ()
        start = MLSTMState(*(u.new_zeros((u.shape[0], self.heads, *shape), dtype=dtype) for shape in shapes))
        h, _ = self.mlstm_cell(self.q_proj(c), self.k_proj(c), self.v_proj(u), start, None)
        y: Tensor = self.proj_down((h + self.learnable_skip * c) * F.silu(z))
        return y.flip(1) if self.backwards else y


class ViL(Isotropic):
    """Vision-LSTM: twelve pairs of :class:`ViLLayer`, forwards and backwards, and a head on the first and last token.

    Args:
        kwargs: As of :class:`Isotropic`.

    Source:
        Alkin et al., Vision-LSTM: xLSTM as generic vision backbone (2024); sizes: its second version.
    """

    def __init__(self, **kwargs: Any) -> None:
        def block(site: Site) -> nn.Module:
            return TokenBlock(site, ViLLayer(site.dim, backwards=site.number % 2 == 1), nn.LayerNorm)

        super().__init__(block, **{"global_pool": "ends", "depth": 24, **kwargs})


default_cfgs = generate_default_cfgs({name: config() for name in ("vil_tiny", "vil_small", "vil_base")})


@register_model
def vil_tiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ViL-T: width 192, 6 M parameters."""
    return create(ViL, "vil_tiny", pretrained, **{"embed_dim": 192, **kwargs})


@register_model
def vil_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ViL-S: width 384, 23 M parameters."""
    return create(ViL, "vil_small", pretrained, **{"embed_dim": 384, **kwargs})


@register_model
def vil_base(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ViL-B: width 768, 89 M parameters."""
    return create(ViL, "vil_base", pretrained, **{"embed_dim": 768, **kwargs})
