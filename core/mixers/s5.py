"""S5: a multi-input, multi-output diagonal state space."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..diagonal import diagonal_ssm, s5_start, zero_order_hold
from ..parameters import log_uniform, undecayed, widen
from ..registry import Mixer, State, register_mixer


@register_mixer("s5")
class S5(Mixer):
    """State space with learned diagonal decay and step sizes, zero-order hold, and a gated output.

    ``h_t = exp(Lambda dt) h_{t-1} + Lambda^-1 (exp(Lambda dt) - 1) B x_t``; ``y = gelu(2 Re(C h) + D x)``;
    output ``y * sigmoid(W y)``. Conjugate pairs are stored once. The real part of Lambda is kept below -1e-4, so
    that training cannot make the recurrence grow.

    Args:
        dim: Features of the input and of the output.
        d_state: Real states, P; even.
        blocks: HiPPO blocks on the diagonal at the start; d_state / blocks must be even.

    Raises:
        ConfigError: d_state is not a multiple of 2 * blocks.

    Source:
        Smith et al., Simplified state space layers for sequence modeling (2023), sections 3 and 4.
    """

    def __init__(self, dim: int, d_state: int = 64, blocks: int = 1) -> None:
        super().__init__(dim, state_shapes={"scan": (d_state // 2, 2)})
        Lambda, B, C = s5_start("S5", dim, d_state, blocks)
        self.Lambda, self.B, self.C = undecayed(Lambda), nn.Parameter(B), nn.Parameter(C)
        self.D = undecayed(torch.randn(dim))
        self.log_step = undecayed(log_uniform((d_state // 2,), 1e-3, 1e-1))
        self.gate = nn.Linear(dim, dim)

    def mix(self, x: Tensor, state: State, reset: Tensor | None) -> tuple[Tensor, State]:
        """Run the state space and its gate; the state is h as (real, imaginary) pairs."""
        decay, gain = zero_order_hold(self.Lambda, self.log_step)
        into = gain.unsqueeze(-1) * torch.view_as_complex(widen(self.B))
        y, scan_state = diagonal_ssm(x, decay, into, 2 * torch.view_as_complex(widen(self.C)), state[0], reset)
        y = F.gelu(y + self.D * x)
        return y * torch.sigmoid(self.gate(y)), (scan_state,)
