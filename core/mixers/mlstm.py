"""The mLSTM: an LSTM whose memory is a matrix and whose gates are exponential."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels import MLSTMState, causal_conv1d, mlstm_scan
from ..heads import HeadNorm, count_heads, split_heads
from ..parameters import mark_undecayed, undecayed, widen
from ..registry import Mixer, State, register_mixer


class BlockLinear(nn.Module):
    """Linear map that keeps blocks of features apart.

    Args:
        width: Features of the input and of the output.
        blocks: Blocks that the features are cut into.
        std: Standard deviation of the initial weights.
        bias: Whether something is added.
    """

    def __init__(self, width: int, blocks: int, std: float, bias: bool = False) -> None:
        super().__init__()
        size = width // blocks
        self.weight = nn.Parameter(std * torch.randn(blocks, size, size))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None
        self.joined = next(count for count in range(max(1, 32 // size), 0, -1) if blocks % count == 0)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (B, L, width)."""
        # Products with 4 x 4 blocks take longer than with 32 x 32 ones that are zero but for their diagonal of blocks.
        eye = torch.eye(self.joined, device=x.device, dtype=self.weight.dtype)
        blocks = self.weight.unflatten(0, (-1, self.joined)).unsqueeze(3) * eye.view(self.joined, 1, self.joined, 1)
        blocks = blocks.flatten(3, 4).flatten(1, 2)
        y = torch.einsum("blhd,hod->blho", split_heads(x, blocks.shape[0]), blocks).flatten(-2)
        return y if self.bias is None else y + self.bias


class ShortConv(nn.Module):
    """Causal convolution, one filter per channel, and SiLU; apart, for its parameters' names.

    Args:
        width: Channels.
        taps: Taps of each filter.
    """

    def __init__(self, width: int, taps: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(width, width, taps, groups=width)

    def forward(self, x: Tensor, state: Tensor, reset: Tensor | None) -> tuple[Tensor, Tensor]:
        """Convolve x (B, L, width) after the inputs in the state (B, taps - 1, width)."""
        taps, bias = self.conv.weight.squeeze(1), self.conv.bias
        return causal_conv1d(x, taps, bias, activation="silu", initial_state=state, reset=reset)


class MLSTMCell(nn.Module):
    """The matrix LSTM between its projections: gates from q, k and v together, the scan, a norm.

    Args:
        heads: Heads.
        head_dim: Features of one head.
        bias: Whether the norm adds something.
    """

    def __init__(self, heads: int, head_dim: int, bias: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.igate = nn.Linear(3 * heads * head_dim, heads)
        self.fgate = nn.Linear(3 * heads * head_dim, heads)
        self.outnorm = HeadNorm(heads, head_dim, "layer", bias=bias, residual=True)
        nn.init.zeros_(self.igate.weight)
        nn.init.zeros_(self.fgate.weight)
        with torch.no_grad():
            self.igate.bias.normal_(std=0.1)
            self.fgate.bias.copy_(torch.linspace(3, 6, heads))
        mark_undecayed(self.igate.bias)
        mark_undecayed(self.fgate.bias)

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, state: MLSTMState, reset: Tensor | None
    ) -> tuple[Tensor, MLSTMState]:
        """Run over q, k and v, (B, L, heads * head_dim) each; the result has their shape."""
        # In half precision a sum with the forget gate's bias, 3 to 6, would lose what the input adds.
        gates = widen(torch.cat([self.igate.bias, self.fgate.bias]))
        weights = torch.cat([self.igate.weight, self.fgate.weight]).chunk(3, 1)
        for part, weight in zip((q, k, v), weights, strict=True):
            gates = gates + widen(F.linear(part, weight))
        i, f = gates.chunk(2, -1)
        q, k, v = (split_heads(part, self.heads) for part in (q, k, v))
        h, state = mlstm_scan(q, k, v, i, f, initial_state=state, reset=reset)
        return self.outnorm(h).flatten(-2), state


@register_mixer("mlstm")
class MLSTM(Mixer):
    """The mLSTM layer: a gated block around a short convolution and the matrix LSTM.

    ``u, z = W_up x``; ``c = silu(conv(u))``; q and k from c, v from u, by blocks; gates from q, k and v together;
    ``h = mlstm_scan(q, k, v, i, f)``; output ``W_down ((norm(h) + skip * c) * silu(z))``, a layer norm over each head's
    own features. Parameters carry the names of the authors' release (xlstm's mLSTMLayer), so that its weights load.

    Args:
        dim: Features of the input and of the output.
        expand: Channels inside, in multiples of dim.
        head_dim: Channels of one head; None is the largest divisor of the channels inside that is at most 64.
        block_size: Channels that q's, k's and v's projections mix; None is the largest divisor of the channels inside
            that is at most 4.
        d_conv: Taps of the convolution.
        bias: Whether the linear maps and the norm add something.

    Raises:
        ConfigError: head_dim or block_size does not divide the channels inside.

    Source:
        Beck et al., xLSTM: extended long short-term memory (2024), section 2.3 and figure 11; initial values: the
        authors' release, for a network of one block.
    """

    def __init__(
        self,
        dim: int,
        expand: int = 2,
        head_dim: int | None = None,
        block_size: int | None = None,
        d_conv: int = 4,
        bias: bool = False,
    ) -> None:
        width = expand * dim
        heads = count_heads("MLSTM", width, head_dim)
        blocks = count_heads("MLSTM", width, block_size, at_most=4, argument="block_size")
        size = width // heads
        super().__init__(
            dim,
            state_shapes={"conv": (d_conv - 1, width), "C": (heads, size, size), "n": (heads, size), "m": (heads,)},
        )
        std = (2 / (5 * dim)) ** 0.5
        self.proj_up = nn.Linear(dim, 2 * width, bias=bias)
        self.conv1d = ShortConv(width, d_conv)
        self.q_proj = BlockLinear(width, blocks, std, bias)
        self.k_proj = BlockLinear(width, blocks, std, bias)
        self.v_proj = BlockLinear(width, blocks, std, bias)
        self.mlstm_cell = MLSTMCell(heads, size, bias)
        self.learnable_skip = undecayed(torch.ones(width))
        self.proj_down = nn.Linear(width, dim, bias=bias)
        nn.init.normal_(self.proj_up.weight, std=std)
        nn.init.normal_(self.proj_down.weight, std=2 / dim**0.5)

    def mix(self, x: Tensor, state: State, reset: Tensor | None) -> tuple[Tensor, State]:
        """Run the layer; the state is the convolution's last inputs, and the cell's C, n and m."""
        conv_state, *cell = state
        u, z = self.proj_up(x).chunk(2, -1)
        c, conv_state = self.conv1d(u, conv_state, reset)
        h, cell_state = self.mlstm_cell(self.q_proj(c), self.k_proj(c), self.v_proj(u), MLSTMState(*cell), reset)
        return self.proj_down((h + self.learnable_skip * c) * F.silu(z)), (conv_state, *cell_state)
