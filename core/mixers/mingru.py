"""minGRU, and what it shares with minLSTM."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from ...kernels import linear_scan
from ..parameters import widen
from ..registry import Mixer, State, register_mixer


class MinRNN(Mixer):
    """Gated recurrence whose gates see the input alone: ``h_t = f_t * h_{t-1} + i_t * g(W_h x_t)``.

    ``g(v) = v + 1/2`` for v >= 0, else ``sigmoid(v)``. The forget gate is a sigmoid and so within (0, 1): the scan runs
    on the values themselves, without the paper's logarithms.

    Args:
        dim: Features of the input and of the output.
        expand: Channels inside, in multiples of dim.
        gates: Gate pre-activations per channel.
    """

    def __init__(self, dim: int, expand: float, gates: int) -> None:
        width = int(expand * dim)
        super().__init__(dim, state_shapes={"scan": (width,)})
        self.in_proj = nn.Linear(dim, (gates + 1) * width)
        self.out_proj = nn.Linear(width, dim)
        self.gates = gates

    @abstractmethod
    def forget_and_input(self, *gates: Tensor) -> tuple[Tensor, Tensor]:
        """Return f and i, each within (0, 1), from the gates' pre-activations (B, L, width)."""

    def mix(self, x: Tensor, state: State, reset: Tensor | None) -> tuple[Tensor, State]:
        """Run the recurrence; the state is h."""
        # A bfloat16 forget gate has no value between 0.996 and 1.
        candidate, *gates = widen(self.in_proj(x)).chunk(self.gates + 1, -1)
        forget, accept = self.forget_and_input(*gates)
        candidate = torch.where(candidate >= 0, candidate + 0.5, candidate.sigmoid())
        h, scan_state = linear_scan(forget, accept * candidate, initial_state=state[0].to(candidate.dtype), reset=reset)
        return self.out_proj(h.to(x.dtype)), (scan_state,)


@register_mixer("mingru")
class MinGRU(MinRNN):
    """GRU with a gate that sees the input alone.

    ``h_t = (1 - z_t) * h_{t-1} + z_t * g(W_h x_t)``, ``z = sigmoid(W_z x)``

    Args:
        dim: Features of the input and of the output.
        expand: Channels inside, in multiples of dim.

    Source:
        Feng et al., Were RNNs all we needed? (2024), section 3.1; g from appendix B.
    """

    def __init__(self, dim: int, expand: float = 1.0) -> None:
        super().__init__(dim, expand, gates=1)

    def forget_and_input(self, *gates: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``1 - z`` and ``z``."""
        (z,) = gates
        return torch.sigmoid(-z), torch.sigmoid(z)
