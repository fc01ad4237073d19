"""The mLSTM: an LSTM whose memory is a matrix and whose gates are exponential."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels import mlstm_scan
from ..conv import causal_conv1d
from ..heads import HeadNorm, count_heads, split_heads
from ..parameters import mark_undecayed, undecayed
from ..registry import Mixer, State, register_mixer


class BlockLinear(nn.Module):
    """Linear map without bias that keeps blocks of features apart.

    Args:
        width: Features of the input and of the output.
        blocks: Blocks that the features are cut into.
        std: Standard deviation of the initial weights.
    """

    def __init__(self, width: int, blocks: int, std: float) -> None:
        super().__init__()
        size = width // blocks
        self.weight = nn.Parameter(std * torch.randn(blocks, size, size))

    def forward(self, x: Tensor) -> Tensor:
        """Map x (B, L, width)."""
        return torch.einsum("blhd,hod->blho", split_heads(x, self.weight.shape[0]), self.weight).flatten(-2)


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

    Raises:
        ConfigError: head_dim or block_size does not divide the channels inside.

    Source:
        Beck et al., xLSTM: extended long short-term memory (2024), section 2.3 and figure 11; initial values: the
        authors' release, for a network of one block.
    """

    def __init__(
        self, dim: int, expand: int = 2, head_dim: int | None = None, block_size: int | None = None, d_conv: int = 4
    ) -> None:
        width = expand * dim
        heads = count_heads("MLSTM", width, head_dim)
        blocks = count_heads("MLSTM", width, block_size, at_most=4, argument="block_size")
        size = width // heads
        super().__init__(
            dim,
            state_shapes={"conv": (d_conv - 1, width), "C": (heads, size, size), "n": (heads, size), "m": (heads,)},
        )
        self.heads = heads
        std = (2 / (5 * dim)) ** 0.5
        self.proj_up = nn.Linear(dim, 2 * width, bias=False)
        self.conv1d = nn.ModuleDict({"conv": nn.Conv1d(width, width, d_conv, groups=width)})
        self.q_proj = BlockLinear(width, blocks, std)
        self.k_proj = BlockLinear(width, blocks, std)
        self.v_proj = BlockLinear(width, blocks, std)
        gates = {gate: nn.Linear(3 * width, heads) for gate in ("igate", "fgate")}
        norm = HeadNorm(heads, size, "layer", bias=False, residual=True)
        self.mlstm_cell = nn.ModuleDict({**gates, "outnorm": norm})
        self.learnable_skip = undecayed(torch.ones(width))
        self.proj_down = nn.Linear(width, dim, bias=False)
        nn.init.normal_(self.proj_up.weight, std=std)
        nn.init.normal_(self.proj_down.weight, std=2 / dim**0.5)
        for gate in gates.values():
            nn.init.zeros_(gate.weight)
            mark_undecayed(gate.bias)
        with torch.no_grad():
            gates["igate"].bias.normal_(std=0.1)
            gates["fgate"].bias.copy_(torch.linspace(3, 6, heads))

    def mix(self, x: Tensor, state: State, reset: Tensor | None) -> tuple[Tensor, State]:
        """Run the layer; the state is the convolution's last inputs, and the cell's C, n and m."""
        conv_state, *cell_state = state
        u, z = self.proj_up(x).chunk(2, -1)
        conv = self.conv1d["conv"]
        mixed, conv_state = causal_conv1d(u, conv.weight.squeeze(1), conv.bias, conv_state, reset)
        mixed = F.silu(mixed)
        q, k, v = self.q_proj(mixed), self.k_proj(mixed), self.v_proj(u)
        seen = torch.cat([q, k, v], -1)
        h, cell_state = mlstm_scan(
            *(split_heads(part, self.heads) for part in (q, k, v)),
            self.mlstm_cell["igate"](seen),
            self.mlstm_cell["fgate"](seen),
            initial_state=tuple(cell_state),
            reset=reset,
        )
        h = self.mlstm_cell["outnorm"](h).flatten(-2) + self.learnable_skip * mixed
        return self.proj_down(h * F.silu(z)), (conv_state, *cell_state)
