"""minLSTM: the LSTM whose gates see the input alone."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..registry import register_mixer
from .mingru import MinRNN


@register_mixer("minlstm")
class MinLSTM(MinRNN):
    """LSTM with normalised gates that see the input alone.

    ``h_t = f' * h_{t-1} + i' * g(W_h x_t)``, ``f' = f / (f + i)``, ``i' = i / (f + i)``, ``f, i = sigmoid(W x)``

    Args:
        dim: Features of the input and of the output.
        expand: Channels inside, in multiples of dim.

    Source:
        Feng et al., Were RNNs all we needed? (2024), section 3.2; g from appendix B.
    """

    def __init__(self, dim: int, expand: float = 1.0) -> None:
        super().__init__(dim, expand, gates=2)

    def forget_and_input(self, *gates: Tensor) -> tuple[Tensor, Tensor]:
        """Return the two gates, normalised to sum to 1."""
        forget, accept = gates
        # f / (f + i) = sigmoid(log f - log i), which cannot divide 0 by 0.
        balance = F.logsigmoid(forget) - F.logsigmoid(accept)
        return torch.sigmoid(balance), torch.sigmoid(-balance)
