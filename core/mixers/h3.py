"""H3: two state spaces between three projections, as attention has them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...kernels import causal_conv1d
from ..heads import count_heads, split_heads
from ..parameters import undecayed, widen
from ..registry import Mixer, State, register_mixer
from ..ssm.convolution import run_system
from ..ssm.discretise import Method
from ..ssm.layer import DiagonalStateSpace, Init


@register_mixer("h3")
class H3(Mixer):
    """Keys remembered by a shift state space, products with the values by a diagonal one, read by the queries.

    ``o = q * SSM_diag(SSM_shift(k) * v)``; with heads wider than 1 the inner product is the outer product of key and
    value, and q reads it. The shift state space holds the last inputs, so that it is a short convolution; both state
    spaces have a direct path (``D_k``, ``D``).

    Args:
        dim: Features of the input and of the output.
        d_state: State size of the diagonal state space, even.
        d_shift: Steps that the shift state space holds.
        head_dim: Features of a head; the diagonal state runs over head_dim^2 products a head.
        init: The diagonal poles at the start: ``lin``, ``inv`` or ``legs``.
        method: Discretisation, ``zoh`` or ``bilinear``.
        dt_min: Smallest step at the start; steps are log-uniform.
        dt_max: Largest step at the start.

    Raises:
        ConfigError: head_dim does not divide dim, d_state is odd, or init or method is not one of those named.

    Source:
        Dao et al., Hungry hungry hippos: towards language modeling with state space models (2023), section 3.1 and
        algorithm 1.
    """

    def __init__(
        self,
        dim: int,
        d_state: int = 64,
        d_shift: int = 8,
        head_dim: int = 1,
        init: Init = "lin",
        method: Method = "zoh",
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
    ) -> None:
        heads = count_heads("H3", dim, head_dim)
        products = (head_dim, head_dim, heads, d_state // 2, 2)
        super().__init__(dim, state_shapes={"shift": (d_shift - 1, dim), "scan": products})
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(dim, dim) for _ in range(4))
        self.shift = nn.Parameter(torch.randn(dim, d_shift) / d_shift**0.5)
        self.D_k = undecayed(torch.randn(dim))
        self.ssm = DiagonalStateSpace("H3", heads, d_state, init, method, dt_min, dt_max)
        self.D = undecayed(torch.randn(heads))

    def mix(self, x: Tensor, state: State, reset: Tensor | None) -> tuple[Tensor, State]:
        """Run both state spaces; the state is the last keys, and the products' poles as pairs."""
        k, shift = self.k_proj(x), state[0]
        remembered, shift = causal_conv1d(k, self.shift, initial_state=shift, reset=reset)
        k = widen(remembered) + widen(self.D_k) * widen(k)
        q, k, v = (split_heads(part, self.heads) for part in (widen(self.q_proj(x)), k, widen(self.v_proj(x))))
        outer = k.unsqueeze(-1) * v.unsqueeze(-2)
        batch, length, size = x.shape[0], x.shape[1], q.shape[-1]
        inputs = outer.permute(0, 3, 4, 1, 2).reshape(-1, length, self.heads)
        starts = None if reset is None else reset.repeat_interleave(size * size, 0)
        y, last = run_system(self.ssm.system(), inputs, state[1].flatten(0, 2).flatten(2), starts)
        y = y + widen(self.D) * inputs
        y = y.reshape(batch, size, size, length, self.heads)
        read = (q.permute(0, 3, 1, 2).unsqueeze(2) * y).sum(1)
        return self.out_proj(read.permute(0, 2, 3, 1).flatten(2).to(x.dtype)), (shift, last.reshape(state[1].shape))
