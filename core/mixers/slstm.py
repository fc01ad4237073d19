"""The sLSTM: an LSTM with exponential gates and memory mixing within heads."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...kernels import cell_scan
from ..heads import HeadNorm, count_heads, split_heads
from ..parameters import undecayed
from ..registry import Mixer, State, register_mixer
from .mlstm import BlockLinear, ShortConv


class SLSTMCell(nn.Module):
    """The recurrence between its maps; its parameters are flat, as the authors' release has them.

    Args:
        heads: Heads.
        head_dim: Features of one head.
    """

    def __init__(self, heads: int, head_dim: int) -> None:
        super().__init__()
        self.shape = (heads, 4, head_dim)
        self._recurrent_kernel_ = nn.Parameter(torch.zeros(heads, 4 * head_dim, head_dim))
        # Forget gates from 5 down to -7: most features forget within a few steps, few keep for hundreds.
        place = torch.arange(head_dim) / max(1, head_dim - 1)
        bias = torch.zeros(4, heads, head_dim)
        bias[1] = 5 - 12 * place**0.3
        self._bias_ = undecayed(bias.flatten())

    def forward(self, gates: Tensor, state: State, reset: Tensor | None) -> tuple[Tensor, State]:
        """Run over gates (B, L, heads, 4, head_dim)."""
        heads, _, size = self.shape
        weights = self._recurrent_kernel_.unflatten(1, (4, size))
        bias = self._bias_.view(4, heads, size).transpose(0, 1)
        return cell_scan(gates, weights, bias, cell="slstm", initial_state=state, reset=reset)


@register_mixer("slstm")
class SLSTM(Mixer):
    """The sLSTM layer: gates by heads, two of them through a short convolution, the cell, a norm.

    ``c = silu(conv(x))``; i and f from c, z and o from x, each by a map within heads;
    ``h = cell_scan((i, f, z, o), R, b, cell="slstm")``; output: a layer norm of h over each head's own features.
    Parameters carry the names of the authors' release (xlstm's sLSTMLayer with the backend ``vanilla``), so that its
    weights load. As there, the map named ``fgate`` feeds the input gate, and ``igate`` the forget gate.

    Args:
        dim: Features of the input and of the output.
        head_dim: Features of one head; None is the largest divisor of dim that is at most 64.
        d_conv: Taps of the convolution.

    Raises:
        ConfigError: head_dim does not divide dim.

    Source:
        Beck et al., xLSTM: extended long short-term memory (2024), section 2.2 and figure 10; initial values: the
        authors' release, for a network of one block.
    """

    def __init__(self, dim: int, head_dim: int | None = None, d_conv: int = 4) -> None:
        heads = count_heads("SLSTM", dim, head_dim)
        shape, std = (heads, dim // heads), (2 / (5 * dim)) ** 0.5
        super().__init__(dim, state_shapes={"conv": (d_conv - 1, dim), "h": shape, "c": shape, "n": shape, "m": shape})
        self.conv1d = ShortConv(dim, d_conv)
        self.fgate = BlockLinear(dim, heads, std)
        self.igate = BlockLinear(dim, heads, std)
        self.zgate = BlockLinear(dim, heads, std)
        self.ogate = BlockLinear(dim, heads, std)
        self.slstm_cell = SLSTMCell(*shape)
        self.group_norm = HeadNorm(*shape, "layer", bias=False, residual=True)

    def mix(self, x: Tensor, state: State, reset: Tensor | None) -> tuple[Tensor, State]:
        """Run the layer; the state is the convolution's last inputs, and the cell's h, c, n and m."""
        conv_state, *cell = state
        c, conv_state = self.conv1d(x, conv_state, reset)
        gates = self.fgate(c), self.igate(c), self.zgate(x), self.ogate(x)
        heads = self.slstm_cell.shape[0]
        wx = torch.stack([split_heads(gate, heads) for gate in gates], 3)
        h, cell_state = self.slstm_cell(wx, tuple(cell), reset)
        return self.group_norm(h).flatten(-2), (conv_state, *cell_state)
