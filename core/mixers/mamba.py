"""Mamba: a selective state-space mixer."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels import causal_conv1d, selective_scan
from ..errors import ConfigError
from ..parameters import initial_dt_bias, mark_undecayed, undecayed, widen
from ..registry import Mixer, State, register_mixer


@register_mixer("mamba")
class Mamba(Mixer):
    """Gated block around a short convolution and a selective scan.

    ``u, z = W_in x``; ``u = silu(conv(u))``; ``dt, B, C = W_x u``; ``y = W_out (scan(u, dt, A, B, C, D) * silu(z))``.
    Parameters carry the names of the authors' release, so that its weights load.

    Args:
        dim: Features of the input and of the output.
        d_state: States per channel, N.
        d_conv: Taps of the convolution.
        expand: Channels inside, in multiples of dim.
        dt_rank: Width of the step size's bottleneck; None is dim / 16, rounded up.
        eigenvalues: ``positive`` decays in (0, 1), or ``signed`` in (-1, 1), which can count parity.

    Source:
        Gu and Dao, Mamba (2023), algorithm 2, section 3.4, and section 3.6 for the initial values;
        Grazzi et al., Unlocking state-tracking in linear RNNs through negative eigenvalues (2024), section 4.
    """

    def __init__(
        self,
        dim: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        dt_rank: int | None = None,
        eigenvalues: Literal["positive", "signed"] = "positive",
    ) -> None:
        width = expand * dim
        super().__init__(dim, state_shapes={"conv": (d_conv - 1, width), "scan": (width, d_state)})
        if eigenvalues not in ("positive", "signed"):
            raise ConfigError(f"Mamba: eigenvalues is {eigenvalues!r}, expected 'positive' or 'signed'")
        self.d_state = d_state
        self.dt_rank = math.ceil(dim / 16) if dt_rank is None else dt_rank
        self.eigenvalues = eigenvalues
        self.in_proj = nn.Linear(dim, 2 * width, bias=False)
        self.conv1d = nn.Conv1d(width, width, d_conv, groups=width)
        self.x_proj = nn.Linear(width, self.dt_rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, width)
        self.A_log = undecayed(torch.arange(1.0, d_state + 1).log().repeat(width, 1))
        self.D = undecayed(torch.ones(width))
        self.out_proj = nn.Linear(width, dim, bias=False)
        mark_undecayed(self.dt_proj.bias)
        with torch.no_grad():
            self.dt_proj.weight.uniform_(-(self.dt_rank**-0.5), self.dt_rank**-0.5)
            self.dt_proj.bias.copy_(initial_dt_bias((width,)))

    def mix(self, x: Tensor, state: State, reset: Tensor | None) -> tuple[Tensor, State]:
        """Run the block; the state is the convolution's last inputs and the scan's state."""
        conv_state, scan_state = state
        u, z = self.in_proj(x).chunk(2, -1)
        taps, bias = self.conv1d.weight.squeeze(1), self.conv1d.bias
        u, conv_state = causal_conv1d(u, taps, bias, activation="silu", initial_state=conv_state, reset=reset)
        dt, B, C = self.x_proj(u).split([self.dt_rank, self.d_state, self.d_state], -1)
        y, scan_state = selective_scan(
            u,
            F.linear(dt, self.dt_proj.weight),
            -widen(self.A_log).exp(),
            B,
            C,
            D=widen(self.D),
            z=z,
            dt_bias=widen(self.dt_proj.bias),
            eigenvalues=self.eigenvalues,
            initial_state=scan_state,
            reset=reset,
        )
        return self.out_proj(y), (conv_state, scan_state)
