"""RWKV-6, "Finch": receptance-weighted key values with decay and token shift read from the input."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels import gated_linear_attention
from ..heads import HeadNorm, count_heads, split_heads
from ..parameters import undecayed, widen
from ..registry import Mixer, State, register_mixer
from ..shift import token_shift


@register_mixer("rwkv6")
class RWKV6(Mixer):
    """RWKV-6's time mixing.

    ``o_t = (S_{t-1} + Diag(u) k_t v_t^T)^T r_t``, ``S_t = Diag(exp(-exp(w_t))) S_{t-1} + k_t v_t^T``;
    output ``W_o (norm(o) * silu(g))``, a layer norm over each head's own features. w, k, v, r and g each read their own
    blend of a step and the step before it, ``x_t + (x_{t-1} - x_t) (mu + low-rank(x))``; w is ``w_0`` and a low-rank
    term. Parameters carry the names of the authors' release (RWKV-LM's RWKV_Tmix_x060), so that its weights load.

    Initial values are the release's. What depends there on the layer's depth starts as in the first layer, ``ln_x`` at
    1; ``output``, there zero, is drawn as ``receptance``, so that each parameter of a mixer used alone has a gradient.

    Args:
        dim: Features of the input and of the output.
        head_dim: Features of one head; None is the largest divisor of dim that is at most 64.
        mix_rank: Width of the blends' bottleneck.
        decay_rank: Width of the decay's bottleneck.

    Raises:
        ConfigError: head_dim does not divide dim.

    Source:
        Peng et al., Eagle and Finch: RWKV with matrix-valued states and dynamic recurrence (2024), section 4.2; initial
        values: the authors' release.
    """

    def __init__(self, dim: int, head_dim: int | None = None, mix_rank: int = 32, decay_rank: int = 64) -> None:
        heads = count_heads("RWKV6", dim, head_dim)
        size = dim // heads
        super().__init__(dim, state_shapes={"shift": (dim,), "scan": (heads, size, size)})
        self.heads = heads
        ramp = (torch.arange(dim) / dim).view(1, 1, dim)
        self.time_maa_x, self.time_maa_w, self.time_maa_k, self.time_maa_v = (undecayed(1 - ramp) for _ in range(4))
        self.time_maa_r, self.time_maa_g = (undecayed(1 - ramp**0.5) for _ in range(2))
        self.time_maa_w1 = undecayed(_small(dim, 5 * mix_rank))
        self.time_maa_w2 = undecayed(_small(5, mix_rank, dim))
        place = torch.arange(dim) / max(dim - 1, 1)
        self.time_decay = undecayed((-6 + 5 * place**0.7).view(1, 1, dim))
        self.time_decay_w1 = undecayed(_small(dim, decay_rank))
        self.time_decay_w2 = undecayed(_small(decay_rank, dim))
        self.time_faaaa = undecayed(0.1 * ((torch.arange(dim) + 1) % 3 - 1).float().view(heads, size))
        self.receptance, self.key, self.value, self.gate, self.output = (
            nn.Linear(dim, dim, bias=False) for _ in range(5)
        )
        for layer, gain in ((self.receptance, 1), (self.key, 0.1), (self.value, 1), (self.gate, 0.1), (self.output, 1)):
            nn.init.orthogonal_(layer.weight, gain=gain)
        self.ln_x = HeadNorm(heads, size, "layer", eps=64e-5)

    def mix(self, x: Tensor, state: State, reset: Tensor | None) -> tuple[Tensor, State]:
        """Run the mixing; the state is the last input and the heads' matrices."""
        shift_state, scan_state = state
        previous, shift_state = token_shift(x, shift_state, reset)
        xw, xk, xv, xr, xg = self._blend(x, previous - x)
        w = widen(self.time_decay) + torch.tanh(xw @ self.time_decay_w1) @ self.time_decay_w2
        r, k, v = self.receptance(xr), self.key(xk), self.value(xv)
        o, scan_state = gated_linear_attention(
            *(split_heads(part, self.heads) for part in (r, k, v, -w.exp())),
            scale=1.0,
            bonus=widen(self.time_faaaa),
            initial_state=scan_state,
            reset=reset,
        )
        return self.output(self.ln_x(o).flatten(-2) * F.silu(self.gate(xg))), (shift_state, scan_state)

    def _blend(self, x: Tensor, difference: Tensor) -> tuple[Tensor, ...]:
        """Return what w, k, v, r and g read, each (B, L, dim)."""
        low = torch.tanh((x + difference * self.time_maa_x) @ self.time_maa_w1)
        offsets = torch.einsum("blnr,nrc->nblc", split_heads(low, 5), self.time_maa_w2)
        fixed = (self.time_maa_w, self.time_maa_k, self.time_maa_v, self.time_maa_r, self.time_maa_g)
        return tuple(x + difference * (mu + offset) for mu, offset in zip(fixed, offsets.unbind(), strict=True))


def _small(*shape: int) -> Tensor:
    # Of the release's two versions the one in which every factor has a gradient at the start.
    return torch.empty(shape).uniform_(-1e-4, 1e-4)
