"""LSTM as a mixer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..registry import State, register_mixer
from .gru import TorchRNN


@register_mixer("lstm")
class LSTM(TorchRNN):
    """PyTorch's LSTM: ``c_t = f * c_{t-1} + i * tanh(g)``, ``h_t = o * tanh(c_t)``.

    Compiled or exported, it is unrolled over the length.

    Args:
        dim: Features of the input and of the output.

    Source:
        Hochreiter and Schmidhuber, Long short-term memory (1997); equations as in torch.nn.LSTM.
    """

    def __init__(self, dim: int) -> None:
        super().__init__(dim, nn.LSTM(dim, dim), ("h", "c"))

    def run(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Run torch.lstm."""
        h, c = (part.unsqueeze(0) for part in state)
        y, h, c = torch.lstm(x, (h, c), self.weights, True, 1, 0.0, torch.is_grad_enabled(), False, True)
        return y, (h.squeeze(0), c.squeeze(0))

    def cell(self, x: Tensor, state: State) -> State:
        """Take torch.lstm_cell's step."""
        return torch.lstm_cell(x, state, *self.weights)
