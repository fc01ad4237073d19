"""VMamba: an image backbone of four resolutions whose blocks scan the grid four ways."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath, Mlp
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from ...core.parameters import initial_dt_bias, undecayed, widen
from ...kernels import selective_scan
from .entry import config
from .hierarchical import Hierarchical, create
from .hierarchical import checkpoint_filter_fn as checkpoint_filter_fn
from .isotropic import Site


def cross_orders(size: tuple[int, int], device: torch.device | None = None) -> Tensor:
    """Order the places of a grid by rows, by columns, and by both from their ends.

    Args:
        size: H and W.
        device: Where the orders shall be.

    Returns:
        (4, H W) int64: the row-major place that each step visits.

    Source:
        Liu et al., VMamba (2024), figure 3.
    """
    places = torch.arange(size[0] * size[1], device=device)
    columns = places.view(size).t().flatten()
    return torch.stack([places, columns, places.flip(0), columns.flip(0)])


class SS2D(nn.Module):
    """Selective scans of a grid along four readings, each with its own parameters, in one call of the kernel.

    ``u = silu(conv(W_in x))``; in each direction k ``dt_k, B_k, C_k = W_k u`` and
    ``y_k = scan(u, W_dt_k dt_k + b_k, A_k, B_k, C_k, D_k)``; the output is ``W_out norm(sum_k y_k)``.

    Args:
        dim: Features.
        ratio: Channels inside, in multiples of dim.
        d_state: States per channel.

    Source:
        Liu et al., VMamba (2024), section 4.2 and, for the form without a gate and with one state, section 4.3.
        Parameters carry the names of the authors' release.
    """

    def __init__(self, dim: int, ratio: float = 1.0, d_state: int = 1) -> None:
        super().__init__()
        width, self.d_state = int(ratio * dim), d_state
        self.dt_rank = rank = math.ceil(dim / 16)
        self.in_proj = nn.Linear(dim, width, bias=False)
        self.conv2d = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.x_proj_weight = nn.Parameter(torch.empty(4, rank + 2 * d_state, width).uniform_(-1, 1) / math.sqrt(width))
        self.dt_projs_weight = nn.Parameter(torch.empty(4, width, rank).uniform_(-1, 1) / math.sqrt(rank))
        self.dt_projs_bias = undecayed(initial_dt_bias((4, width)))
        self.A_logs = undecayed(torch.arange(1.0, d_state + 1).log().repeat(4 * width, 1))
        self.Ds = undecayed(torch.ones(4 * width))
        self.out_norm = nn.LayerNorm(width)
        self.out_proj = nn.Linear(width, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Mix a grid (B, H, W, dim)."""
        u = self.conv2d(self.in_proj(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        y: Tensor = self.out_proj(self.out_norm(self.scan(F.silu(u))))
        return y

    def scan(self, u: Tensor) -> Tensor:
        """Scan a grid u (B, H, W, width) four ways and add up what they give at each place."""
        size, places = (u.shape[1], u.shape[2]), u.flatten(1, 2)
        mapped = F.linear(places, self.x_proj_weight.flatten(0, 1)).unflatten(-1, (4, -1))
        low, B, C = mapped.split([self.dt_rank, self.d_state, self.d_state], -1)
        y, _ = selective_scan(
            places.unsqueeze(2).expand(-1, -1, 4, -1),
            torch.einsum("blkr,kcr->blkc", low, self.dt_projs_weight),
            -widen(self.A_logs).exp(),
            B,
            C,
            D=widen(self.Ds),
            dt_bias=widen(self.dt_projs_bias).flatten(),
            orders=cross_orders(size, u.device),
        )
        return y.sum(2).unflatten(1, size)


class VSSBlock(nn.Module):
    """Pre-norm residual block: ``x = x + op(norm(x))``, then ``x = x + mlp(norm2(x))``.

    Args:
        site: Where it stands.
        ssm_ratio: The scan's channels in multiples of the width.
        d_state: States per channel.
        mlp_ratio: Hidden features of the feed-forward layer in multiples of the width.
    """

    def __init__(self, site: Site, ssm_ratio: float, d_state: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(site.dim)
        self.op = SS2D(site.dim, ssm_ratio, d_state)
        self.drop_path = DropPath(site.drop_path) if site.drop_path else nn.Identity()
        self.norm2 = nn.LayerNorm(site.dim)
        self.mlp = Mlp(site.dim, int(mlp_ratio * site.dim))

    def forward(self, x: Tensor) -> Tensor:
        """Map a grid (B, H, W, C)."""
        x = x + self.drop_path(self.op(self.norm(x)))
        y: Tensor = x + self.drop_path(self.mlp(self.norm2(x)))
        return y


class VMamba(Hierarchical):
    """Four stages of blocks that scan the grid by rows and columns, both ways.

    Args:
        ssm_ratio: The scans' channels in multiples of the width.
        d_state: States per channel.
        mlp_ratio: Hidden features of the feed-forward layers in multiples of the width.
        kwargs: As of :class:`Hierarchical`.

    Source:
        Liu et al., VMamba: visual state space model (2024).
    """

    def __init__(self, *, ssm_ratio: float = 1.0, d_state: int = 1, mlp_ratio: float = 4.0, **kwargs: Any) -> None:
        super().__init__(lambda site: VSSBlock(site, ssm_ratio, d_state, mlp_ratio), **kwargs)


_names = ("vmamba_tiny", "vmamba_small", "vmamba_base")
default_cfgs = generate_default_cfgs(
    {name: config(first_conv="patch_embed.0", classifier="head.fc", pool_size=(7, 7)) for name in _names}
)


@register_model
def vmamba_tiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """VMamba-T: widths from 96, depths 2-2-8-2, scans as wide as the blocks."""
    return create(VMamba, "vmamba_tiny", pretrained, **kwargs)


@register_model
def vmamba_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """VMamba-S: widths from 96, depths 2-2-15-2, scans twice as wide as the blocks."""
    given = {"depths": (2, 2, 15, 2), "ssm_ratio": 2.0, **kwargs}
    return create(VMamba, "vmamba_small", pretrained, **given)


@register_model
def vmamba_base(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """VMamba-B: widths from 128, depths 2-2-15-2, scans twice as wide as the blocks."""
    given = {"depths": (2, 2, 15, 2), "dims": (128, 256, 512, 1024), "ssm_ratio": 2.0, **kwargs}
    return create(VMamba, "vmamba_base", pretrained, **given)
