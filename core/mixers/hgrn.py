"""HGRN: a gated linear recurrence whose forget gate has a floor."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels import linear_scan
from ..errors import ConfigError
from ..parameters import undecayed, widen
from ..registry import Mixer, State, register_mixer


@register_mixer("hgrn")
class HGRN(Mixer):
    """Complex linear recurrence with a forget gate read from the input, which never falls below a floor.

    ``h_t = f_t e^(i theta) h_{t-1} + (1 - f_t) c_t`` with ``f_t = lower_bound + (1 - lower_bound) sigmoid(W_f x_t)``
    and ``c_t = silu(W_r x_t) + i silu(W_i x_t)``; output ``W_o norm(silu(W_g x) * [Re h, Im h])``. The paper lets the
    floor rise from layer to layer, so that upper layers remember longer: give each layer its own.

    Args:
        dim: Features of the input and of the output.
        expand: Complex features inside, in multiples of dim.
        lower_bound: The floor of the forget gate, in [0, 1).

    Raises:
        ConfigError: lower_bound is not in [0, 1).

    Source:
        Qin et al., Hierarchically gated recurrent neural network for sequence modeling (2023), section 3.2.
    """

    def __init__(self, dim: int, expand: float = 1.0, lower_bound: float = 0.0) -> None:
        width = max(1, int(expand * dim))
        super().__init__(dim, state_shapes={"scan": (width, 2)})
        if not 0 <= lower_bound < 1:
            raise ConfigError(f"HGRN: lower_bound is {lower_bound}, expected a number in [0, 1)")
        self.lower_bound = lower_bound
        self.theta = undecayed(10000.0 ** (-torch.arange(width) / width))
        self.in_proj = nn.Linear(dim, 2 * width)
        self.f_proj = nn.Linear(dim, width)
        self.g_proj = nn.Linear(dim, 2 * width)
        self.norm = nn.LayerNorm(2 * width)
        self.out_proj = nn.Linear(2 * width, dim)

    def mix(self, x: Tensor, state: State, reset: Tensor | None) -> tuple[Tensor, State]:
        """Run the recurrence; the state is h as (real, imaginary) pairs."""
        # A bfloat16 forget gate has no value between 0.996 and 1.
        candidate, gate = F.silu(widen(self.in_proj(x))), widen(self.f_proj(x))
        accept = (1 - self.lower_bound) * torch.sigmoid(-gate)
        real, imaginary = candidate.chunk(2, -1)
        decay = torch.polar(1 - accept, widen(self.theta).expand_as(accept))
        h, last = linear_scan(
            decay,
            accept * torch.complex(real, imaginary),
            initial_state=torch.view_as_complex(state[0].contiguous()),
            reset=reset,
        )
        y = F.silu(widen(self.g_proj(x))) * torch.cat([h.real, h.imag], -1)
        return self.out_proj(self.norm(y.to(x.dtype))), (torch.view_as_real(last),)
