"""Nonlinear cells with diagonal recurrent weights, whose steps can be solved all at once: ParaGRU and ParaLSTM."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...kernels import newton_scan
from ...kernels.newton_scan.cells import find_cell
from ..parameters import undecayed
from ..registry import Mixer, State, register_mixer


class ParaRNN(Mixer):
    """Gates from the input, a nonlinear recurrence within each channel, an output map.

    ``y = W_out newton_scan(W_in x)``: channels meet in W_in and W_out alone, so that a step's Jacobian is diagonal, or
    of blocks as large as a channel's state.

    Args:
        dim: Features of the input and of the output.
        expand: Channels inside, in multiples of dim.
        cell: A cell that :func:`scanweave.kernels.newton_scan` knows.
    """

    def __init__(self, dim: int, expand: float, cell: str) -> None:
        width, found = max(1, int(expand * dim)), find_cell(cell)
        super().__init__(dim, state_shapes=dict.fromkeys(found.states, (width,)))
        self.cell, self.shape = cell, (len(found.gates), width)
        self.in_proj = nn.Linear(dim, len(found.gates) * width, bias=False)
        self.recurrent_weight = undecayed(torch.empty(len(found.weights), width).uniform_(-1, 1))
        self.recurrent_bias = undecayed(torch.zeros(self.shape))
        self.out_proj = nn.Linear(width, dim, bias=False)

    def mix(self, x: Tensor, state: State, reset: Tensor | None) -> tuple[Tensor, State]:
        """Run the cell; the state is the cell's."""
        wx = self.in_proj(x).unflatten(-1, self.shape)
        weights = self.recurrent_weight, self.recurrent_bias
        if wx.dtype != weights[0].dtype:  # autocast's
            wx = wx.to(weights[0].dtype)
        h, state = newton_scan(wx, *weights, cell=self.cell, initial_state=state, reset=reset)
        return self.out_proj(h.to(x.dtype)), state


@register_mixer("paragru")
class ParaGRU(ParaRNN):
    """GRU whose recurrent weights are diagonal: ``h = (1 - z) h + z tanh(a_n + r_n (q h))``, an output map.

    Args:
        dim: Features of the input and of the output.
        expand: Channels inside, in multiples of dim.

    Source:
        Danieli et al., ParaRNN (2025).
    """

    def __init__(self, dim: int, expand: float = 1.0) -> None:
        super().__init__(dim, expand, "gru")


@register_mixer("paralstm")
class ParaLSTM(ParaRNN):
    """LSTM with diagonal recurrent weights, peepholes and one gate for input and forgetting, an output map.

    ``c = f c + (1 - f) tanh(a_g + r_g h)``, ``h = o tanh(c)``; f also sees c before the step, o the new c.

    Args:
        dim: Features of the input and of the output.
        expand: Channels inside, in multiples of dim.

    Source:
        Danieli et al., ParaRNN (2025).
    """

    def __init__(self, dim: int, expand: float = 1.0) -> None:
        super().__init__(dim, expand, "lstm")
