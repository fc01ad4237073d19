"""RWKV-7: the time mix of "Goose"."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels import dplr_scan
from ..errors import ConfigError
from ..heads import HeadNorm, count_heads, split_heads
from ..parameters import undecayed, widen
from ..registry import Mixer, State, register_mixer
from ..shift import token_shift

#: The decay is exp(-e^-1/2 sigmoid(w)): at least 0.545.
DECAY_SCALE = math.exp(-0.5)


@register_mixer("rwkv7")
class RWKV7(Mixer):
    """Generalised delta rule with a vector decay, a vector learning rate, and removal apart from replacement.

    With ``x^s = x_t + (x_{t-1} - x_t) * x_s`` for s in r, w, k, v, a, g: ``r, k, v = W x^r, W x^k, W x^v``;
    ``w = exp(-e^{-1/2} sigmoid(w0 + tanh(x^w w1) w2))``; ``a = sigmoid(a0 + x^a a1 a2)``;
    ``kappa = k * k_k / |k * k_k|`` per head; ``k <- k * (1 + (a - 1) * k_a)``;
    ``S_t = Diag(w) S_{t-1} - (a * kappa) (kappa^T S_{t-1}) + k v^T``, ``o = S_t^T r``;
    ``y = W_o ((norm(o) + (r . (r_k * k)) v) * (sigmoid(x^g g1) g2))``.

    Parameters carry the names of the authors' release and start at its values, with these choices. What depends there
    on the layer's depth starts as in the first layer, ``ln_x`` at 1. What starts there at exactly zero (``output`` and
    the low-rank maps' first factors) is drawn small, so that each parameter of a mixer used alone has a gradient. The
    value residual (v0, v1, v2) mixes in the first layer's values; one mixer sees one layer, so it is left out.

    Args:
        dim: Features of the input and of the output.
        head_dim: Features of a head; None is the largest divisor of dim that is at most 64.
        decay_rank: Width of the low-rank map to w; None is the authors' 2.5 sqrt(dim) in multiples of 32, at least 32.
        rate_rank: Width of the low-rank map to a; None likewise.
        gate_rank: Width of the low-rank map to g; None is 5 sqrt(dim) likewise.

    Raises:
        ConfigError: head_dim does not divide dim, or a rank is not positive.

    Source:
        Peng et al., RWKV-7 "Goose" with expressive dynamic state evolution (2025), section 4.1, equations 2 to 19.
    """

    def __init__(
        self,
        dim: int,
        head_dim: int | None = None,
        decay_rank: int | None = None,
        rate_rank: int | None = None,
        gate_rank: int | None = None,
    ) -> None:
        heads = count_heads("RWKV7", dim, head_dim)
        head_dim = dim // heads
        super().__init__(dim, state_shapes={"shift": (dim,), "scan": (heads, head_dim, head_dim)})
        self.heads = heads
        channel = torch.arange(dim) / dim
        self.x_r, self.x_w, self.x_k, self.x_v, self.x_a, self.x_g = (
            undecayed(_row(1 - channel**power)) for power in (0.2, 0.9, 0.7, 0.7, 0.9, 0.2)
        )
        place = torch.linspace(0, 1, dim) if dim > 1 else torch.full((1,), 0.5)
        within = torch.linspace(-1, 1, head_dim).repeat(heads) if head_dim > 1 else torch.zeros(dim)
        zigzag, linear = within * within.abs(), place - 0.5
        self.w0 = undecayed(_row(-5.5 + 6 * place + 2.5 * zigzag))
        self.a0 = undecayed(_row(-0.19 + 0.3 * zigzag + 0.4 * linear))
        self.w1, self.w2 = _low_rank("decay_rank", decay_rank, 2.5, dim)
        self.a1, self.a2 = _low_rank("rate_rank", rate_rank, 2.5, dim)
        self.g1, self.g2 = _low_rank("gate_rank", gate_rank, 5, dim)
        self.k_k = undecayed(_row(0.71 - 0.1 * linear))
        self.k_a = undecayed(_row(torch.full((dim,), 1.02)))
        self.r_k = undecayed(torch.full((heads, head_dim), -0.04))
        self.receptance, self.key, self.value, self.output = (nn.Linear(dim, dim, bias=False) for _ in range(4))
        self.ln_x = HeadNorm(heads, head_dim, kind="layer", eps=64e-5)
        with torch.no_grad():
            for layer, bound in ((self.receptance, 0.5), (self.key, 0.05), (self.value, 0.5), (self.output, 0.5)):
                layer.weight.uniform_(-bound / dim**0.5, bound / dim**0.5)

    def mix(self, x: Tensor, state: State, reset: Tensor | None) -> tuple[Tensor, State]:
        """Run the time mix; the state is the last input and the matrix state."""
        shift_state, scan_state = state
        before, shift_state = token_shift(x, shift_state, reset)
        change = before - x
        x_r, x_w, x_k, x_v, x_a, x_g = (
            x + change * mix for mix in (self.x_r, self.x_w, self.x_k, self.x_v, self.x_a, self.x_g)
        )
        r, k, v = self.receptance(x_r), self.key(x_k), self.value(x_v)
        w = self.w0 + torch.tanh(x_w @ self.w1) @ self.w2
        a = torch.sigmoid(self.a0 + x_a @ self.a1 @ self.a2)
        g = torch.sigmoid(x_g @ self.g1) @ self.g2
        # In half precision a decay near 1 would be rounded onto it.
        log_decay = -DECAY_SCALE * torch.sigmoid(widen(w))
        kappa = F.normalize(split_heads(widen(k * self.k_k), self.heads), dim=-1)
        k = k * (1 + (a - 1) * self.k_a)
        r, k, v, a, log_decay = (split_heads(part, self.heads) for part in (r, k.to(r.dtype), v, a, log_decay))
        o, scan_state = dplr_scan(
            r,
            k,
            v,
            -kappa.to(r.dtype),
            (kappa * a).to(r.dtype),
            log_decay,
            scale=1.0,
            initial_state=scan_state,
            reset=reset,
        )
        own = (r * k * self.r_k).sum(-1, keepdim=True) * v
        y = (self.ln_x(o) + own).flatten(-2) * g
        return self.output(y.to(v.dtype)), (shift_state, scan_state)


def _row(values: Tensor) -> Tensor:
    return values.float()[None, None]


def _low_rank(name: str, rank: int | None, factor: float, dim: int) -> tuple[nn.Parameter, nn.Parameter]:
    """Return the two factors (dim, rank) and (rank, dim) of a low-rank map, small at the start."""
    rank = max(32, 32 * round(factor * dim**0.5 / 32)) if rank is None else rank
    if rank < 1:
        raise ConfigError(f"RWKV7: {name} is {rank}, expected at least 1")
    narrow = torch.empty(dim, rank).uniform_(-1e-4, 1e-4)
    wide = nn.init.orthogonal_(torch.empty(rank, dim), gain=0.1 * max(1, rank / dim) ** 0.5)
    return undecayed(narrow), undecayed(wide)
