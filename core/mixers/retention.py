"""Retention: linear attention whose heads forget at fixed rates."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels import gated_linear_attention
from ..heads import HeadNorm, count_heads, split_heads
from ..registry import Mixer, State, register_mixer
from ..rotary import positions, rotate


@register_mixer("retention")
class Retention(Mixer):
    """Multi-scale retention: one constant decay per head, positions told by rotation.

    ``S_t = gamma_h S_{t-1} + k_t v_t^T``, ``o_t = S_t^T q_t / sqrt(K)``, ``gamma_h = 1 - 2^(-5 - h)``; q_t and k_t are
    rotated by ``t theta``; output ``W_out (silu(W_g x) * norm(o))``, the norm over each head's own features. The
    factors by which the paper's code scales scores and states cancel in that norm and are left out.
    Parameters carry the names of the authors' release (torchscale's MultiScaleRetention), so that its weights load.

    Positions count from a sequence's first step, in the state's dtype: float32 counts up to 2^24 steps.

    Args:
        dim: Features of the input and of the output.
        head_dim: Query and key features of one head, K; of an odd number the last is not rotated. None is the largest
            divisor of dim that is at most 64.
        expand_v: Values' width, in multiples of the keys'.
        gate: False leaves ``silu(W_g x)`` out.

    Raises:
        ConfigError: head_dim does not divide dim.

    Source:
        Sun et al., Retentive network (2023), equations 5 to 8; initial values: the authors' release.
    """

    def __init__(self, dim: int, head_dim: int | None = None, expand_v: int = 2, gate: bool = True) -> None:
        heads = count_heads("Retention", dim, head_dim)
        keys, values = dim // heads, expand_v * dim // heads
        super().__init__(dim, state_shapes={"position": (), "scan": (heads, keys, values)})
        self.heads = heads
        self.q_proj = nn.Linear(dim, dim, bias=False)
        self.k_proj = nn.Linear(dim, dim, bias=False)
        self.v_proj = nn.Linear(dim, heads * values, bias=False)
        self.g_proj = nn.Linear(dim, heads * values, bias=False) if gate else None
        self.out_proj = nn.Linear(heads * values, dim, bias=False)
        self.group_norm = HeadNorm(heads, values, "layer", eps=1e-6, affine=False)
        for layer in (self.q_proj, self.k_proj, self.v_proj, self.g_proj):
            if layer is not None:
                nn.init.xavier_uniform_(layer.weight, gain=2**-2.5)
        nn.init.xavier_uniform_(self.out_proj.weight)

    def log_decay(self, like: Tensor) -> Tensor:
        """Return ``log(1 - 2^(-5 - h))`` per head, (H,), in the dtype and on the device of another tensor."""
        return torch.log1p(-torch.exp2(-5 - torch.arange(self.heads, device=like.device, dtype=like.dtype)))

    def mix(self, x: Tensor, state: State, reset: Tensor | None) -> tuple[Tensor, State]:
        """Run the retention; the state is the count of steps taken and the heads' matrices."""
        count, scan_state = state
        position = positions(count, x.shape[1], reset)
        q, k, v = (split_heads(project(x), self.heads) for project in (self.q_proj, self.k_proj, self.v_proj))
        frequency = 1e4 ** -torch.linspace(0, 1, q.shape[-1] // 2, device=x.device, dtype=count.dtype)
        q, k = rotate(torch.stack([q, k]), position, frequency).unbind()
        o, scan_state = gated_linear_attention(q, k, v, self.log_decay(count), initial_state=scan_state, reset=reset)
        o = self.group_norm(o).flatten(-2)
        y = self.out_proj(o if self.g_proj is None else F.silu(self.g_proj(x)) * o)
        return y, (position[:, -1] + 1, scan_state)
