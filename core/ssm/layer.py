"""What the mixers over state spaces share: parameters of a diagonal system, and the layer around a system."""

from __future__ import annotations

from abc import abstractmethod
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError
from ..parameters import log_uniform, undecayed, widen
from ..registry import Mixer, State
from .convolution import run_system
from .discretise import Method, check_method, discretise_diagonal
from .hippo import diagonal_poles
from .system import Diagonal, System, wide_dtype

Init = Literal["lin", "inv", "legs"]


def count_pairs(who: str, d_state: int) -> int:
    """Return the number of conjugate pairs of a state.

    Raises:
        ConfigError: d_state is not even and positive.
    """
    if d_state < 2 or d_state % 2:
        raise ConfigError(f"{who}: d_state is {d_state}, expected an even number, at least 2")
    return d_state // 2


def as_pairs(z: Tensor) -> Tensor:
    """Return complex numbers as float32 (real, imaginary) pairs: a complex parameter would not survive a cast."""
    return torch.view_as_real(z.to(torch.complex64)).clone()


def as_complex(pairs: Tensor) -> Tensor:
    """Return pairs (..., 2) as complex numbers in a system's precision."""
    return torch.complex(*pairs.to(wide_dtype(pairs.device)).unbind(-1))


def log_steps(channels: int, dt_min: float, dt_max: float) -> nn.Parameter:
    """Draw the logarithms of the channels' steps."""
    return undecayed(log_uniform((channels,), dt_min, dt_max))


def steps(log_dt: Tensor) -> Tensor:
    """Return the steps (C, 1) in a system's precision."""
    return log_dt.to(wide_dtype(log_dt.device)).exp().unsqueeze(-1)


class DiagonalStateSpace(nn.Module):
    """Parameters of one diagonal state space per channel: S4D's.

    ``A = -exp(log_A_real) + i A_imag``, B = 1 (C takes its part), steps ``exp(log_dt)``.

    Args:
        who: The mixer, for messages.
        channels: Systems.
        d_state: State size N, even; N / 2 conjugate pairs.
        init: ``lin``, ``inv`` or ``legs``.
        method: ``zoh`` or ``bilinear``.
        dt_min: Smallest step at the start.
        dt_max: Largest step at the start.

    Raises:
        ConfigError: An argument is not one of those named.

    Source:
        Gu et al., On the parameterization and initialization of diagonal state space models (2022), section 3.
    """

    def __init__(
        self, who: str, channels: int, d_state: int, init: Init, method: Method, dt_min: float, dt_max: float
    ) -> None:
        super().__init__()
        pairs = count_pairs(who, d_state)
        if init not in ("lin", "inv", "legs"):
            raise ConfigError(f"{who}: init is {init!r}, expected lin, inv or legs")
        check_method(who, method)
        self.method = method
        poles = diagonal_poles(init, pairs).expand(channels, -1)
        self.log_A_real = undecayed((-poles.real).log().float())
        self.A_imag = undecayed(poles.imag.float().clone())
        self.C = nn.Parameter(as_pairs(torch.randn(channels, pairs, dtype=torch.complex64)))
        self.log_dt = log_steps(channels, dt_min, dt_max)

    def system(self) -> Diagonal:
        """Return the discrete system of the present parameters."""
        real, imaginary = (part.to(wide_dtype(part.device)) for part in (self.log_A_real, self.A_imag))
        poles = torch.complex(-real.exp(), imaginary)
        return Diagonal(*discretise_diagonal(poles, steps(self.log_dt), self.method), as_complex(self.C))


class StateSpace(Mixer):
    """The layer around a state space: ``y = gelu(SSM(x) + D x)``, then a map over the features.

    Args:
        dim: Features of the input and of the output.
        state_shape: The state's shape without the batch, channels first.
        gated: Whether the map is ``W_1 y * sigmoid(W_2 y)`` rather than linear.

    Source:
        Gu et al., S4 (2022), section 3.4; the gate: the authors' release.
    """

    def __init__(self, dim: int, state_shape: tuple[int, ...], gated: bool) -> None:
        super().__init__(dim, state_shapes={"scan": state_shape})
        self.gated = gated
        self.D = undecayed(torch.randn(dim))
        self.out_proj = nn.Linear(dim, 2 * dim if gated else dim)

    @abstractmethod
    def system(self) -> System:
        """Return the discrete system of the present parameters."""

    def mix(self, x: Tensor, state: State, reset: Tensor | None) -> tuple[Tensor, State]:
        """Run the state space and the map."""
        y, last = run_system(self.system(), x, state[0].flatten(2), reset)
        y = self.out_proj(F.gelu(y + widen(self.D) * x).to(x.dtype))
        return F.glu(y, -1) if self.gated else y, (last.reshape(state[0].shape),)
