"""LRU: the linear recurrent unit."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..diagonal import diagonal_ssm
from ..errors import ConfigError
from ..parameters import undecayed, widen
from ..registry import Mixer, State, register_mixer


@register_mixer("lru")
class LRU(Mixer):
    """Diagonal complex linear recurrence, stable by its parameters and started on a ring.

    ``h_t = lambda h_{t-1} + gamma B x_t`` with ``lambda = exp(-exp(nu) + i exp(theta))``; ``y = Re(C h) + D x``.
    It is linear: the MLP of a :class:`~scanweave.core.Block` stands after it, as in the paper.

    Args:
        dim: Features of the input and of the output.
        d_state: Complex states; None is dim.
        r_min: Smallest |lambda| at the start.
        r_max: Largest |lambda| at the start, at most 1.
        max_phase: Largest phase of lambda at the start, radians.

    Raises:
        ConfigError: The ring is not within 0 <= r_min < r_max <= 1.

    Source:
        Orvieto et al., Resurrecting recurrent neural networks for long sequences (2023), sections 3.2 to 3.4,
        appendix A.
    """

    def __init__(
        self, dim: int, d_state: int | None = None, r_min: float = 0.0, r_max: float = 1.0, max_phase: float = math.tau
    ) -> None:
        states = dim if d_state is None else d_state
        super().__init__(dim, state_shapes={"scan": (states, 2)})
        if not 0 <= r_min < r_max <= 1:
            raise ConfigError(f"LRU: the ring is r_min = {r_min} to r_max = {r_max}, expected 0 <= r_min < r_max <= 1")
        # (0, 1), both ends left out: their logarithms below would not be finite.
        radius, phase = torch.rand(2, states, dtype=torch.float64).clamp(1e-6, 1 - 1e-6)
        nu = -0.5 * (r_min**2 + radius * (r_max**2 - r_min**2)).log()
        self.nu_log = undecayed(nu.log().float())
        self.theta_log = undecayed((max_phase * phase).log().float())
        self.gamma_log = undecayed(0.5 * (-torch.expm1(-2 * nu)).log().float())
        self.B = nn.Parameter(torch.randn(states, dim, 2) / (2 * dim) ** 0.5)
        self.C = nn.Parameter(torch.randn(dim, states, 2) / states**0.5)
        self.D = undecayed(torch.randn(dim))

    def mix(self, x: Tensor, state: State, reset: Tensor | None) -> tuple[Tensor, State]:
        """Run the recurrence; the state is h as (real, imaginary) pairs."""
        decay = torch.complex(-widen(self.nu_log).exp(), widen(self.theta_log).exp()).exp()
        into = widen(self.gamma_log).exp().unsqueeze(-1) * torch.view_as_complex(widen(self.B))
        y, scan_state = diagonal_ssm(x, decay, into, torch.view_as_complex(widen(self.C)), state[0], reset)
        return y + self.D * x, (scan_state,)
