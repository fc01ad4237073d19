"""Vision Mamba (Vim): selective scans through the patches in both directions."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from ...core.conv import causal_conv1d
from ...core.parameters import initial_dt_bias, mark_undecayed, undecayed, widen
from ...kernels import selective_scan
from .entry import checkpoint_filter_fn as checkpoint_filter_fn
from .entry import config, create
from .isotropic import Isotropic, Site, Size, TokenBlock


def _step_sizes(rank: int, width: int) -> nn.Linear:
    """Return the map to the logarithms of step sizes that start between 1e-3 and 1e-1."""
    made = nn.Linear(rank, width)
    mark_undecayed(made.bias)
    with torch.no_grad():
        made.weight.uniform_(-(rank**-0.5), rank**-0.5)
        made.bias.copy_(initial_dt_bias((width,)))
    return made


class VimMixer(nn.Module):
    """Mamba in two directions between shared projections.

    ``u, z = W_in x``; for each direction with parameters of its own ``u_d = silu(conv_d(u))``,
    ``y_d = scan(u_d, dt_d, A_d, B_d, C_d, D_d) silu(z)``; ``W_out (y_forward + y_backward) / 2``. Both directions are
    one call of the scan, side by side. Parameters carry the names of the authors' release.

    Args:
        dim: Features of a token.
        d_state: States per channel.
        d_conv: Taps of the convolutions.
        expand: Channels inside, in multiples of dim.

    Source:
        Zhu et al., Vision Mamba (2024), algorithm 1; division by 2 and shared projections: the authors' release.
    """

    def __init__(self, dim: int, d_state: int = 16, d_conv: int = 4, expand: int = 2) -> None:
        super().__init__()
        width = expand * dim
        self.d_state, self.rank = d_state, math.ceil(dim / 16)
        self.in_proj = nn.Linear(dim, 2 * width, bias=False)
        self.conv1d, self.conv1d_b = (nn.Conv1d(width, width, d_conv, groups=width) for _ in range(2))
        self.x_proj, self.x_proj_b = (nn.Linear(width, self.rank + 2 * d_state, bias=False) for _ in range(2))
        self.dt_proj, self.dt_proj_b = (_step_sizes(self.rank, width) for _ in range(2))
        decay = torch.arange(1.0, d_state + 1).log().repeat(width, 1)
        self.A_log, self.A_b_log = undecayed(decay.clone()), undecayed(decay)
        self.D, self.D_b = undecayed(torch.ones(width)), undecayed(torch.ones(width))
        self.out_proj = nn.Linear(width, dim, bias=False)

    def forward(self, x: Tensor, size: Size) -> Tensor:
        """Mix tokens x (B, L, dim)."""
        u, z = self.in_proj(x).chunk(2, -1)
        both = torch.cat([u, u.flip(1)], -1)
        weight = torch.cat([self.conv1d.weight, self.conv1d_b.weight]).squeeze(1)
        bias = torch.cat([b for b in (self.conv1d.bias, self.conv1d_b.bias) if b is not None])
        start = both.new_zeros((x.shape[0], weight.shape[1] - 1, weight.shape[0]), dtype=widen(both[:0]).dtype)
        both = F.silu(causal_conv1d(both, weight, bias, start, None)[0])
        sizes = [self.rank, self.d_state, self.d_state]
        there, back = (
            project(part).split(sizes, -1)
            for project, part in zip((self.x_proj, self.x_proj_b), both.chunk(2, -1), strict=True)
        )
        dt = torch.cat([F.linear(there[0], self.dt_proj.weight), F.linear(back[0], self.dt_proj_b.weight)], -1)
        y, _ = selective_scan(
            both,
            dt,
            -widen(torch.cat([self.A_log, self.A_b_log])).exp(),
            torch.stack([there[1], back[1]], 2),
            torch.stack([there[2], back[2]], 2),
            D=widen(torch.cat([self.D, self.D_b])),
            z=torch.cat([z, z.flip(1)], -1),
            dt_bias=widen(torch.cat([self.dt_proj.bias, self.dt_proj_b.bias])),
        )
        forward, backward = y.chunk(2, -1)
        # Half of the weights take less time than half of the tokens.
        return F.linear(forward + backward.flip(1), self.out_proj.weight / 2)


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
