"""Recurrent cells with a matrix per head and gate: Elman's, the LSTM and the GRU in the form of FlashRNN."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...kernels import cell_scan
from ...kernels.cell_scan.cells import find_cell
from ..heads import HeadNorm, count_heads
from ..parameters import undecayed
from ..registry import Mixer, State, register_mixer


class HeadwiseRNN(Mixer):
    """Gates from the input, a recurrence within each head, a norm, an output map.

    ``y = W_out norm(cell_scan(W_in x))``, a layer norm over each head's own features. Features of different heads meet
    in W_in and W_out alone, and so the recurrence costs ``dim * head_dim`` per gate and step.

    Args:
        dim: Features of the input and of the output.
        head_dim: Features of one head; None is the largest divisor of dim that is at most 64.
        cell: A cell that :func:`scanweave.kernels.cell_scan` knows.
        keep: The gate that holds on to the past, whose bias starts at 1; None where there is none.
        input_bias: Whether W_in has a bias too: where the cell does not add the recurrent product's to it.

    Raises:
        ConfigError: head_dim does not divide dim.
    """

    def __init__(
        self, dim: int, head_dim: int | None, cell: str, keep: str | None = None, input_bias: bool = False
    ) -> None:
        heads = count_heads(type(self).__name__, dim, head_dim)
        size, gates = dim // heads, find_cell(cell).gates
        super().__init__(dim, state_shapes=dict.fromkeys(find_cell(cell).states, (heads, size)))
        self.cell, self.shape = cell, (heads, len(gates), size)
        self.in_proj = nn.Linear(dim, len(gates) * dim, bias=input_bias)
        self.recurrent_weight = nn.Parameter(torch.empty(heads, len(gates), size, size))
        self.recurrent_bias = undecayed(torch.zeros(self.shape))
        self.norm = HeadNorm(heads, size, "layer", bias=False, residual=True)
        self.out_proj = nn.Linear(dim, dim, bias=False)
        for matrix in self.recurrent_weight.flatten(0, 1):
            nn.init.orthogonal_(matrix)
        if keep is not None:
            nn.init.ones_(self.recurrent_bias[:, gates.index(keep)])

    def mix(self, x: Tensor, state: State, reset: Tensor | None) -> tuple[Tensor, State]:
        """Run the cell; the state is the cell's."""
        wx = self.in_proj(x).unflatten(-1, self.shape)
        weights = self.recurrent_weight, self.recurrent_bias
        h, state = cell_scan(wx, *weights, cell=self.cell, initial_state=state, reset=reset)
        return self.out_proj(self.norm(h).flatten(-2)), state


@register_mixer("elman")
class Elman(HeadwiseRNN):
    """The simple recurrent network in heads: ``h_t = tanh(W x_t + R h_{t-1} + b)``, a norm per head, an output map.

    Args:
        dim: Features of the input and of the output.
        head_dim: Features of one head; None is the largest divisor of dim that is at most 64.

    Raises:
        ConfigError: head_dim does not divide dim.

    Source:
        Elman, Finding structure in time (1990); in heads: Pöppel et al., FlashRNN (2024), section 3. Initial values:
        orthogonal recurrent weights, Saxe et al. (2013).
    """

    def __init__(self, dim: int, head_dim: int | None = None) -> None:
        super().__init__(dim, head_dim, "elman")


@register_mixer("flash_lstm")
class FlashLSTM(HeadwiseRNN):
    """The LSTM in heads: ``c = sigmoid(f) c + sigmoid(i) tanh(g)``, ``h = sigmoid(o) tanh(c)``, a norm, an output map.

    ``lstm`` is PyTorch's, one head as wide as the layer.

    Args:
        dim: Features of the input and of the output.
        head_dim: Features of one head; None is the largest divisor of dim that is at most 64.

    Raises:
        ConfigError: head_dim does not divide dim.

    Source:
        Hochreiter and Schmidhuber (1997); in heads: Pöppel et al., FlashRNN (2024), section 3. Initial values:
        orthogonal recurrent weights, Saxe et al. (2013); a forget bias of 1, Jozefowicz et al. (2015).
    """

    def __init__(self, dim: int, head_dim: int | None = None) -> None:
        super().__init__(dim, head_dim, "lstm", keep="f")


@register_mixer("flash_gru")
class FlashGRU(HeadwiseRNN):
    """The GRU in heads: ``n = tanh(W x + b + r (R h + c))``, ``h = (1 - z) n + z h``, a norm, an output map.

    ``gru`` is PyTorch's, one head as wide as the layer.

    Args:
        dim: Features of the input and of the output.
        head_dim: Features of one head; None is the largest divisor of dim that is at most 64.

    Raises:
        ConfigError: head_dim does not divide dim.

    Source:
        Cho et al. (2014), section 2.3; in heads: Pöppel et al., FlashRNN (2024), section 3. Initial values: orthogonal
        recurrent weights, Saxe et al. (2013); a bias of 1 for the gate that keeps, as for the LSTM's.
    """

    def __init__(self, dim: int, head_dim: int | None = None) -> None:
        super().__init__(dim, head_dim, "gru", keep="z", input_bias=True)
