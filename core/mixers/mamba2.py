"""Mamba-2: a selective state space with one decay per head."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels import causal_conv1d, gated_linear_attention
from ..errors import ConfigError
from ..heads import HeadNorm, count_heads, split_heads
from ..parameters import initial_dt_bias, undecayed, widen
from ..registry import Mixer, State, register_mixer


@register_mixer("mamba2")
class Mamba2(Mixer):
    """Gated block around a short convolution and a state space whose A is one scalar per head.

    ``z, x, B, C, dt = W_in u``; ``x, B, C = silu(conv(x, B, C))``; ``dt = softplus(dt + dt_bias)``;
    ``S_t = exp(dt_t A) S_{t-1} + B_t (dt_t x_t)^T``, ``y_t = S_t^T C_t + D x_t``; output
    ``W_out norm(y * silu(z))``, a root mean square norm over each group's features.
    Parameters carry the names of the authors' release (mamba_ssm's Mamba2), so that its weights load.

    Args:
        dim: Features of the input and of the output.
        d_state: Rows of a head's state, N.
        d_conv: Taps of the convolution.
        expand: Channels inside, in multiples of dim.
        head_dim: Channels of one head; None is the largest divisor of the channels inside that is at most 64.
        groups: Pairs of B and C; the heads are shared out among them.

    Raises:
        ConfigError: head_dim does not divide the channels inside, or groups does not divide the heads.

    Source:
        Dao and Gu, Transformers are SSMs (2024), section 7; initial values: the authors' release.
    """

    def __init__(
        self,
        dim: int,
        d_state: int = 128,
        d_conv: int = 4,
        expand: int = 2,
        head_dim: int | None = None,
        groups: int = 1,
    ) -> None:
        width = expand * dim
        heads = count_heads("Mamba2", width, head_dim)
        if groups < 1 or heads % groups:
            raise ConfigError(f"Mamba2: groups is {groups}, expected a divisor of the {heads} heads")
        mixed = width + 2 * groups * d_state
        super().__init__(dim, state_shapes={"conv": (d_conv - 1, mixed), "scan": (heads, d_state, width // heads)})
        self.heads, self.groups, self.d_state = heads, groups, d_state
        self.in_proj = nn.Linear(dim, width + mixed + heads, bias=False)
        self.conv1d = nn.Conv1d(mixed, mixed, d_conv, groups=mixed)
        self.dt_bias = undecayed(initial_dt_bias((heads,)))
        self.A_log = undecayed(torch.empty(heads).uniform_(1, 16).log())
        self.D = undecayed(torch.ones(heads))
        self.norm = HeadNorm(groups, width // groups)
        self.out_proj = nn.Linear(width, dim, bias=False)

    def mix(self, x: Tensor, state: State, reset: Tensor | None) -> tuple[Tensor, State]:
        """Run the block; the state is the convolution's last inputs and the heads' matrices."""
        conv_state, scan_state = state
        width, sizes = self.out_proj.in_features, self.groups * self.d_state
        z, mixed, dt = self.in_proj(x).split([width, width + 2 * sizes, self.heads], -1)
        taps, bias = self.conv1d.weight.squeeze(1), self.conv1d.bias
        mixed, conv_state = causal_conv1d(mixed, taps, bias, activation="silu", initial_state=conv_state, reset=reset)
        u, B, C = mixed.split([width, sizes, sizes], -1)
        u = split_heads(u, self.heads)
        dt = F.softplus(widen(dt) + widen(self.dt_bias))
        o, scan_state = gated_linear_attention(
            self._share(C),
            self._share(B),
            (dt.unsqueeze(-1) * u).to(u.dtype),
            -dt * widen(self.A_log).exp(),
            scale=1.0,
            initial_state=scan_state,
            reset=reset,
        )
        y = (o + widen(self.D).unsqueeze(-1) * u).flatten(-2) * F.silu(widen(z))
        return self.out_proj(self.norm(split_heads(y, self.groups)).flatten(-2).to(z.dtype)), (conv_state, scan_state)

    def _share(self, x: Tensor) -> Tensor:
        """Give each head its group's B or C, (B, L, groups * N) as (B, L, H, N); one group's memory is not copied."""
        each = split_heads(x, self.groups).unsqueeze(3)
        return each.expand(-1, -1, -1, self.heads // self.groups, -1).flatten(2, 3)
