"""DeltaNet, and the block that it shares with Gated DeltaNet and DeltaProduct."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels import causal_conv1d, delta_rule
from ..errors import ConfigError
from ..heads import HeadNorm, count_heads, split_heads
from ..parameters import initial_dt_bias, undecayed, widen
from ..registry import Mixer, State, register_mixer

Eigenvalues = Literal["positive", "signed"]


def unit(x: Tensor) -> Tensor:
    """Scale the last axis to length 1, as the authors do: x / sqrt(|x|^2 + 1e-6), so that zero stays zero.

    The result is in single precision at least.
    """
    wide = widen(x)
    return wide * torch.rsqrt(wide.square().sum(-1, keepdim=True) + 1e-6)


def rounding(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return by which factor a conversion of x to a dtype changes the square of its last axis's length, no gradient."""
    with torch.no_grad():
        before, after = (part.square().sum(-1) for part in (x, x.to(dtype).to(x.dtype)))
        return torch.where(before > 0, after / before, 1)


class DeltaMixer(Mixer):
    """Short convolutions, a (gated) delta rule with n corrections a step, a norm per head.

    ``q, k, v = silu(conv(W x))``, q and k of length 1; ``beta = sigmoid(W_b x)``; ``y = W_o norm(delta_rule(...))``.
    Gated, the state decays by ``exp(-exp(A_log) softplus(W_a x + dt_bias))`` each step, and the normed output is
    multiplied by ``silu(W_g x)``. Parameters carry the names of flash-linear-attention's layers, so that published
    weights load.

    Args:
        dim: Features of the input and of the output.
        width: Width of all heads' queries, and of the keys of one correction.
        head_dim: Width of a head's queries and keys, K; None is the largest divisor of width that is at most 64.
        expand_v: Width of a head's values, V, in multiples of head_dim.
        d_conv: Taps of the convolutions.
        householders: Corrections a step, n, each with a key, value and strength of its own.
        gated: Decay the state and gate the output.
        eigenvalues: ``positive`` strengths in (0, 1), or ``signed`` in (0, 2): eigenvalues down to -1.

    Raises:
        ConfigError: An argument is out of its range.
    """

    def __init__(
        self,
        dim: int,
        *,
        width: int,
        head_dim: int | None,
        expand_v: float,
        d_conv: int,
        householders: int,
        gated: bool,
        eigenvalues: Eigenvalues,
    ) -> None:
        who = type(self).__name__
        for name, number in (("d_conv", d_conv), ("householders", householders)):
            if number < 1:
                raise ConfigError(f"{who}: {name} is {number}, expected at least 1")
        heads = count_heads(who, width, head_dim)
        head_dim = width // heads
        value_dim = round(expand_v * head_dim)
        if value_dim < 1 or value_dim != expand_v * head_dim:
            raise ConfigError(
                f"{who}: expand_v is {expand_v} and head_dim {head_dim}: their product, the values' width, is "
                f"{expand_v * head_dim}, expected a whole number"
            )
        if eigenvalues not in ("positive", "signed"):
            raise ConfigError(f"{who}: eigenvalues is {eigenvalues!r}, expected 'positive' or 'signed'")
        widths = (width, householders * width, householders * heads * value_dim)
        super().__init__(dim, state_shapes={"conv": (d_conv - 1, sum(widths)), "scan": (heads, head_dim, value_dim)})
        self.heads, self.head_dim, self.value_dim = heads, head_dim, value_dim
        self.householders, self.gated, self.eigenvalues = householders, gated, eigenvalues
        self.widths = widths
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(dim, channels, bias=False) for channels in widths)
        self.q_conv1d, self.k_conv1d, self.v_conv1d = (
            nn.Conv1d(channels, channels, d_conv, groups=channels, bias=False) for channels in widths
        )
        self.b_proj = nn.Linear(dim, householders * heads, bias=False)
        if gated:
            self.a_proj = nn.Linear(dim, heads, bias=False)
            self.A_log = undecayed(torch.empty(heads).uniform_(0, 16).clamp(min=1e-3).log())
            self.dt_bias = undecayed(initial_dt_bias((heads,)))
            self.g_proj = nn.Linear(dim, heads * value_dim, bias=False)
        self.o_norm = HeadNorm(1, value_dim, eps=1e-5)
        self.o_proj = nn.Linear(heads * value_dim, dim, bias=False)

    def mix(self, x: Tensor, state: State, reset: Tensor | None) -> tuple[Tensor, State]:
        """Run the block; the state is the convolutions' last inputs and the delta rule's state."""
        conv_state, scan_state = state
        qkv = torch.cat([self.q_proj(x), self.k_proj(x), self.v_proj(x)], -1)
        taps = torch.cat([self.q_conv1d.weight, self.k_conv1d.weight, self.v_conv1d.weight]).squeeze(1)
        qkv, conv_state = causal_conv1d(qkv, taps, activation="silu", initial_state=conv_state, reset=reset)
        q, k, v = qkv.split(self.widths, -1)
        steps = (self.householders, self.heads)
        # In half precision a strength near 1 or 2 would be rounded onto it.
        beta = torch.sigmoid(widen(self.b_proj(x))).unflatten(-1, steps)
        beta = 2 * beta if self.eigenvalues == "signed" else beta
        k = unit(k.unflatten(-1, (*steps, self.head_dim)))
        if k.dtype != v.dtype:
            # A key that is rounded up, times a strength of 2, would have an eigenvalue below -1: the state would grow.
            beta = beta / rounding(k, v.dtype)
        log_decay = None
        if self.gated:
            step = F.softplus(widen(self.a_proj(x)) + widen(self.dt_bias))
            log_decay = -widen(self.A_log).exp() * step
        o, scan_state = delta_rule(
            unit(split_heads(q, self.heads)).to(v.dtype),
            k.to(v.dtype),
            v.unflatten(-1, (*steps, self.value_dim)),
            beta,
            log_decay,
            initial_state=scan_state,
            reset=reset,
        )
        o = self.o_norm(o).flatten(-2)
        if self.gated:
            o = o * F.silu(self.g_proj(x))
        return self.o_proj(o), (conv_state, scan_state)


@register_mixer("deltanet")
class DeltaNet(DeltaMixer):
    """Linear attention that writes by the delta rule: each step corrects what the state holds under its key.

    ``S_t = S_{t-1} + beta_t k_t (v_t - S_{t-1}^T k_t)^T``, ``o_t = S_t^T q_t / sqrt(K)``, with |q| = |k| = 1; see
    :class:`DeltaMixer` for the block around it.

    Args:
        dim: Features of the input and of the output.
        head_dim: Features of a head; None is the largest divisor of dim that is at most 64.
        d_conv: Taps of the convolutions on queries, keys and values.
        eigenvalues: ``positive``: beta in (0, 1), or ``signed``: beta in (0, 2), which can count parity.

    Raises:
        ConfigError: head_dim does not divide dim, or an argument is out of its range.

    Source:
        Yang et al., Parallelizing linear transformers with the delta rule over sequence length (2024), sections 2.2
        and 3.3; signed: Grazzi et al., Unlocking state-tracking in linear RNNs through negative eigenvalues (2024),
        section 4.
    """

    def __init__(
        self, dim: int, head_dim: int | None = None, d_conv: int = 4, eigenvalues: Eigenvalues = "positive"
    ) -> None:
        super().__init__(
            dim,
            width=dim,
            head_dim=head_dim,
            expand_v=1.0,
            d_conv=d_conv,
            householders=1,
            gated=False,
            eigenvalues=eigenvalues,
        )
