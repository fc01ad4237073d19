"""Gated linear attention: each row of the state forgets at a rate read from the input."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels import gated_linear_attention
from ..heads import HeadNorm, count_heads, split_heads
from ..parameters import widen
from ..registry import Mixer, State, register_mixer


@register_mixer("gla")
class GLA(Mixer):
    """Linear attention whose decay is a vector over the keys' features, from the input.

    ``S_t = Diag(a_t) S_{t-1} + k_t v_t^T``, ``o_t = S_t^T q_t / sqrt(K)``, ``a_t = sigmoid(W_2 W_1 x_t + b)^(1/16)``;
    output ``W_o (silu(W_g x) * norm(o))``, a root mean square norm over each head's own features.
    Parameters carry the names of flash-linear-attention's GatedLinearAttention, so that its weights load.

    Args:
        dim: Features of the input and of the output.
        head_dim: Features of dim that one head is made from; None is the largest divisor of dim that is at most 64.
        expand_k: Query and key features of a head, in multiples of head_dim, rounded down, at least 1.
        expand_v: Value features of a head, in multiples of head_dim, rounded down, at least 1.
        gate_rank: Width of the decay's bottleneck.
        gate_divisor: By which the decay's logarithm is divided.

    Raises:
        ConfigError: head_dim does not divide dim.

    Source:
        Yang et al., Gated linear attention transformers with hardware-efficient training (2023), sections 4.1 and 4.4;
        initial values: the authors' release.
    """

    def __init__(
        self,
        dim: int,
        head_dim: int | None = None,
        expand_k: float = 0.5,
        expand_v: float = 1.0,
        gate_rank: int = 16,
        gate_divisor: float = 16.0,
    ) -> None:
        heads = count_heads("GLA", dim, head_dim)
        keys, values = (max(1, int(expand * (dim // heads))) for expand in (expand_k, expand_v))
        super().__init__(dim, state_shapes={"scan": (heads, keys, values)})
        self.heads, self.gate_divisor = heads, gate_divisor
        self.q_proj = nn.Linear(dim, heads * keys, bias=False)
        self.k_proj = nn.Linear(dim, heads * keys, bias=False)
        self.v_proj = nn.Linear(dim, heads * values, bias=False)
        self.g_proj = nn.Linear(dim, heads * values, bias=False)
        self.gk_proj = nn.Sequential(nn.Linear(dim, gate_rank, bias=False), nn.Linear(gate_rank, heads * keys))
        self.g_norm_swish_gate = HeadNorm(1, values)
        self.o_proj = nn.Linear(heads * values, dim, bias=False)
        for layer in (self.q_proj, self.k_proj, *self.gk_proj):
            nn.init.xavier_uniform_(layer.weight, gain=2**-2.5)

    def mix(self, x: Tensor, state: State, reset: Tensor | None) -> tuple[Tensor, State]:
        """Run the attention; the state is the heads' matrices."""
        projections = (self.q_proj, self.k_proj, self.v_proj, self.gk_proj)
        q, k, v, gate = (split_heads(project(x), self.heads) for project in projections)
        log_decay = F.logsigmoid(widen(gate)) / self.gate_divisor
        o, scan_state = gated_linear_attention(q, k, v, log_decay, initial_state=state[0], reset=reset)
        return self.o_proj(F.silu(self.g_proj(x)) * self.g_norm_swish_gate(o).flatten(-2)), (scan_state,)
