"""Aaren: attention of a learned query over every prefix."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ...kernels import PrefixState, prefix_attention
from ..heads import count_heads, split_heads
from ..parameters import undecayed, widen
from ..registry import Mixer, State, register_mixer


@register_mixer("aaren")
class Aaren(Mixer):
    """Softmax attention of a query that does not depend on the input, over all steps so far.

    ``o_t = sum_{i<=t} e^(s_i) v_i / sum_{i<=t} e^(s_i)`` with ``s_i = q . (W_k x_i) / sqrt(head_dim)``, q a learned
    vector of each head; output ``W_o o``. It is all attention of a Transformer's layer can do with one token as query,
    and streams in constant memory.

    Args:
        dim: Features of the input and of the output.
        head_dim: Features of a head; None is the largest divisor of dim that is at most 64.

    Raises:
        ConfigError: head_dim does not divide dim.

    Source:
        Feng et al., Attention as an RNN (2024), section 3.3.
    """

    def __init__(self, dim: int, head_dim: int | None = None) -> None:
        heads = count_heads("Aaren", dim, head_dim)
        size = dim // heads
        super().__init__(dim, state_shapes={"numerator": (heads, size), "denominator": (heads,), "maximum": (heads,)})
        self.heads = heads
        self.query = undecayed(torch.randn(heads, size))
        self.k_proj, self.v_proj, self.o_proj = (nn.Linear(dim, dim, bias=False) for _ in range(3))

    def initial_state(
        self, batch_size: int, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
    ) -> State:
        """Return the state before the first step: empty sums, whose largest exponent is minus infinity."""
        *sums, maximum = super().initial_state(batch_size, device, dtype)
        return *sums, torch.full_like(maximum, -math.inf)

    def mix(self, x: Tensor, state: State, reset: Tensor | None) -> tuple[Tensor, State]:
        """Run the attention; the state is its two sums and the largest score."""
        # A score in half precision would be off by as much as neighbouring weights differ.
        k, v = (widen(split_heads(project(x), self.heads)) for project in (self.k_proj, self.v_proj))
        scores = (k * widen(self.query)).sum(-1) / k.shape[-1] ** 0.5
        o, last = prefix_attention(scores, v, initial_state=PrefixState(*state), reset=reset)
        return self.o_proj(o.flatten(-2).to(x.dtype)), tuple(last)
