"""Mamba in two directions between shared projections."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels import causal_conv1d, selective_scan
from ..layouts import GridMixer
from ..parameters import initial_dt_bias, mark_undecayed, undecayed, widen
from ..registry import register_mixer


def _step_sizes(rank: int, width: int) -> nn.Linear:
    """Return the map to the logarithms of step sizes that start between 1e-3 and 1e-1."""
    made = nn.Linear(rank, width)
    mark_undecayed(made.bias)
    with torch.no_grad():
        made.weight.uniform_(-(rank**-0.5), rank**-0.5)
        made.bias.copy_(initial_dt_bias((width,)))
    return made


@register_mixer("bimamba")
class BiMamba(GridMixer):
    """Mamba in two directions between shared projections, along the raster of a grid.

    ``u, z = W_in x``; for each direction with parameters of its own ``u_d = silu(conv_d(u))``,
    ``y_d = scan(u_d, dt_d, A_d, B_d, C_d, D_d)``; ``W_out (y_forward + y_backward) silu(z) / 2``. Both directions are
    one call of the scan, side by side. Parameters carry the names of the authors' release.

    Args:
        dim: Features of the input and of the output.
        d_state: States per channel.
        d_conv: Taps of the convolutions.
        expand: Channels inside, in multiples of dim.
        average: False adds the two directions up, without the division by 2.

    Source:
        Zhu et al., Vision Mamba (2024), algorithm 1; division by 2 and shared projections: the authors' release.
    """

    def __init__(self, dim: int, d_state: int = 16, d_conv: int = 4, expand: int = 2, average: bool = True) -> None:
        super().__init__(dim)
        width = expand * dim
        self.d_state, self.rank, self.average = d_state, math.ceil(dim / 16), average
        self.in_proj = nn.Linear(dim, 2 * width, bias=False)
        self.conv1d, self.conv1d_b = (nn.Conv1d(width, width, d_conv, groups=width) for _ in range(2))
        self.x_proj, self.x_proj_b = (nn.Linear(width, self.rank + 2 * d_state, bias=False) for _ in range(2))
        self.dt_proj, self.dt_proj_b = (_step_sizes(self.rank, width) for _ in range(2))
        decay = torch.arange(1.0, d_state + 1).log().repeat(width, 1)
        self.A_log, self.A_b_log = undecayed(decay.clone()), undecayed(decay)
        self.D, self.D_b = undecayed(torch.ones(width)), undecayed(torch.ones(width))
        self.out_proj = nn.Linear(width, dim, bias=False)

    def mix(self, x: Tensor) -> Tensor:
        """Mix x (B, *shape, dim), its places one after the other."""
        shape, x = x.shape, x.flatten(1, -2)
        u, z = self.in_proj(x).chunk(2, -1)
        both = torch.cat([u, u.flip(1)], -1)
        weight = torch.cat([self.conv1d.weight, self.conv1d_b.weight]).squeeze(1)
        bias = torch.cat([b for b in (self.conv1d.bias, self.conv1d_b.bias) if b is not None])
        both, _ = causal_conv1d(both, weight, bias, activation="silu")
        both = both.unflatten(-1, (2, -1))
        weight = torch.stack([self.x_proj.weight, self.x_proj_b.weight])
        low, B, C = torch.einsum("blgk,grk->blgr", both, weight).split([self.rank, self.d_state, self.d_state], -1)
        y, _ = selective_scan(
            both,
            torch.einsum("blgr,gkr->blgk", low, torch.stack([self.dt_proj.weight, self.dt_proj_b.weight])),
            -widen(torch.cat([self.A_log, self.A_b_log])).exp(),
            B,
            C,
            D=widen(torch.cat([self.D, self.D_b])),
            dt_bias=widen(torch.cat([self.dt_proj.bias, self.dt_proj_b.bias])),
        )
        forward, backward = y.unbind(2)
        # Half of the weights take less time than half of the tokens.
        weight = self.out_proj.weight / 2 if self.average else self.out_proj.weight
        return F.linear((forward + backward.flip(1)) * F.silu(z), weight).view(shape)
