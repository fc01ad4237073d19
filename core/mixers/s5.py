"""S5: a multi-input, multi-output diagonal state space."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..diagonal import diagonal_ssm
from ..errors import ConfigError
from ..parameters import log_uniform, undecayed, widen
from ..registry import Mixer, State, register_mixer
from ..ssm.hippo import hippo_normal


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
        if d_state < 2 or d_state % (2 * blocks):
            raise ConfigError(f"S5: d_state is {d_state}, expected a multiple of 2 * blocks = {2 * blocks}")
        size = d_state // blocks
        eigenvalues, vectors = hippo_normal(size)
        eigenvalues, vectors = eigenvalues[size // 2 :].repeat(blocks), vectors[:, size // 2 :]
        basis = torch.block_diag(*[vectors] * blocks)
        into = torch.randn(d_state, dim, dtype=torch.float64) / dim**0.5
        out_of = torch.randn(dim, d_state, dtype=torch.float64) / d_state**0.5
        self.Lambda = undecayed(_pairs(eigenvalues))
        self.B = nn.Parameter(_pairs(basis.mH @ into.to(basis.dtype)))
        self.C = nn.Parameter(_pairs(out_of.to(basis.dtype) @ basis))
        self.D = undecayed(torch.randn(dim))
        self.log_step = undecayed(log_uniform((d_state // 2,), 1e-3, 1e-1))
        self.gate = nn.Linear(dim, dim)

    def mix(self, x: Tensor, state: State, reset: Tensor | None) -> tuple[Tensor, State]:
        """Run the state space and its gate; the state is h as (real, imaginary) pairs."""
        real, imaginary = widen(self.Lambda).unbind(-1)
        pole = torch.complex(real.clamp(max=-1e-4), imaginary)
        step = widen(self.log_step).exp()
        decay = (pole * step).exp()
        into = ((decay - 1) / pole).unsqueeze(-1) * torch.view_as_complex(widen(self.B))
        y, scan_state = diagonal_ssm(x, decay, into, 2 * torch.view_as_complex(widen(self.C)), state[0], reset)
        y = F.gelu(y + self.D * x)
        return y * torch.sigmoid(self.gate(y)), (scan_state,)


def _pairs(z: Tensor) -> Tensor:
    return torch.view_as_real(z.to(torch.complex64)).clone()
