"""pLSTM along a series: a matrix state that keeps a share of itself, with gates for writing, reading and passing by."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...kernels import plstm_scan_1d
from ..gates import HeadGates
from ..heads import HeadNorm, count_heads, split_heads
from ..registry import Mixer, State, register_mixer


@register_mixer("plstm1d")
class PLSTM1D(Mixer):
    """The pLSTM layer of series: source, transition, mark and direct gates of each head, shares in (0, 1) read from x.

    ``q, k, v = W_q x, W_k x, W_v x``; ``o_t = (M_t C_{t-1} + D_t k_t v_t^T)^T q_t / sqrt(K)``,
    ``C_t = T_t C_{t-1} + S_t k_t v_t^T``; output ``W_o norm(o)``, a norm over each head's own features.

    Args:
        dim: Features of the input and of the output.
        head_dim: Features of one head; None is the largest divisor of dim that is at most 64.

    Raises:
        ConfigError: head_dim does not divide dim.

    Source:
        Pöppel et al., pLSTM: parallelizable linear source transition mark networks (2025), section 3.
    """

    def __init__(self, dim: int, head_dim: int | None = None) -> None:
        heads = count_heads("plstm1d", dim, head_dim)
        size = dim // heads
        super().__init__(dim, state_shapes={"C": (heads, size, size)})
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(dim, dim, bias=False) for _ in range(3))
        half = torch.zeros(heads)
        biases = {"transition": torch.linspace(2, 5, heads), "source": half, "mark": half, "direct": half}
        self.gates = HeadGates(dim, biases, logarithms=("transition",))
        self.norm = HeadNorm(heads, size)
        self.o_proj = nn.Linear(dim, dim, bias=False)

    def mix(self, x: Tensor, state: State, reset: Tensor | None) -> tuple[Tensor, State]:
        """Run the scan; the state is the heads' matrices."""
        q, k, v = (split_heads(project(x), self.heads) for project in (self.q_proj, self.k_proj, self.v_proj))
        g = self.gates(x)
        gates = g["source"], g["transition"], g["mark"], g["direct"]
        o, final = plstm_scan_1d(q, k, v, *gates, initial_state=state[0], reset=reset)
        return self.o_proj(self.norm(o).flatten(-2)), (final,)
