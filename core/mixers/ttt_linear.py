"""TTT-Linear: a recurrence whose state is a linear model, trained while it is read."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels import TTTState, causal_conv1d, ttt_linear
from ..errors import ConfigError
from ..heads import count_heads, split_heads
from ..parameters import undecayed, widen
from ..registry import Mixer, State, register_mixer
from ..rotary import positions, rotate


@register_mixer("ttt_linear")
class TTTLinear(Mixer):
    """Test-time training of a linear inner model ``f(x; W, b) = x + LN(x W + b)`` per head.

    ``q, k, v = W x``, q and k rotated by their place in the mini-batch. Each step takes a gradient step on
    ``|f(k_t) - v_t|^2 / 2``, with the gradients of a mini-batch taken at its beginning, and reads ``o_t = f(q_t)``;
    output ``W_o norm(o)``. The step size is learned: ``sigmoid(w . x + c) / head_dim / mini_batch`` per head.

    The authors' release scales the steps since a mini-batch's beginning by 1 / t when its t-th step reads them. Here
    that factor is 1 / mini_batch at every step: each mini-batch leaves behind what it does in the release, and reads
    within one lean less on it. The release's correction of that factor (learnable_token_idx, 0 at the start) is left
    out unless ``learned_factor``; the other parameters carry the release's names, so that its weights load, and its
    initial values. Its projections start with a standard deviation of 0.02 at every width; here with PyTorch's, which
    is that at dim 768, for the norms inside are ill-conditioned on smaller inputs.

    Args:
        dim: Features of the input and of the output.
        head_dim: Features of one head; of an odd number the last is not rotated. None is the largest divisor of dim
            that is at most 64.
        mini_batch: Steps whose gradients are taken at the same weights.
        backbone: ``transformer``: queries and keys with projections of their own. ``mamba``: one projection for both,
            behind a convolution of their own each, and the output gated by ``gelu(W_g x)``.
        d_conv: Taps of the convolutions of the ``mamba`` backbone.
        learned_factor: Whether the factor is ``max(0, 1 / mini_batch + c_i)`` with a learned c_i for the i-th step of
            a mini-batch: the release's numbers, but they belong to the step whose gradient they scale, where the
            release's belong to the step that reads.

    Raises:
        ConfigError: head_dim does not divide dim, or an argument is out of its range.

    Source:
        Sun et al., Learning to (learn at test time): RNNs with expressive hidden states (2024), sections 2.3 to 2.7 and
        appendix A.
    """

    def __init__(
        self,
        dim: int,
        head_dim: int | None = None,
        mini_batch: int = 16,
        backbone: Literal["transformer", "mamba"] = "transformer",
        d_conv: int = 4,
        learned_factor: bool = False,
    ) -> None:
        heads = count_heads("TTTLinear", dim, head_dim)
        size = dim // heads
        for name, number in (("mini_batch", mini_batch), ("d_conv", d_conv)):
            if number < 1:
                raise ConfigError(f"TTTLinear: {name} is {number}, expected at least 1")
        if backbone not in ("transformer", "mamba"):
            raise ConfigError(f"TTTLinear: backbone is {backbone!r}, expected 'transformer' or 'mamba'")
        matrix, vector = (heads, size, size), (heads, size)
        shapes: dict[str, tuple[int, ...]] = {
            "weight": matrix,
            "bias": vector,
            "weight_update": matrix,
            "bias_update": vector,
            "position": (),
        }
        if backbone == "mamba":
            shapes["conv"] = (d_conv - 1, dim)
        super().__init__(dim, state_shapes=shapes)
        self.heads, self.mini_batch, self.backbone = heads, mini_batch, backbone
        self.q_proj, self.v_proj, self.o_proj = (nn.Linear(dim, dim, bias=False) for _ in range(3))
        if backbone == "mamba":
            self.conv_q, self.conv_k = (nn.Conv1d(dim, dim, d_conv, groups=dim) for _ in range(2))
            self.g_proj = nn.Linear(dim, dim, bias=False)
        else:
            self.k_proj = nn.Linear(dim, dim, bias=False)
        self.learnable_ttt_lr_weight = nn.Parameter(0.02 * torch.randn(heads, 1, dim))
        self.learnable_ttt_lr_bias = undecayed(torch.zeros(heads, 1))
        self.learnable_token_idx = undecayed(torch.zeros(mini_batch)) if learned_factor else None
        self.ttt_norm_weight = undecayed(torch.ones(heads, size))
        self.ttt_norm_bias = undecayed(torch.zeros(heads, size))
        self.W1 = nn.Parameter(0.02 * torch.randn(heads, size, size))
        self.b1 = undecayed(torch.zeros(heads, 1, size))
        self.post_norm = nn.LayerNorm(dim, eps=1e-6)

    def initial_state(
        self, batch_size: int, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
    ) -> State:
        """Return the state before the first step: the learned weights and bias, no updates, position 0."""
        _, _, *rest = super().initial_state(batch_size, device, dtype)
        like = rest[0]
        weight, bias = (x.to(like).expand(batch_size, *x.shape) for x in (self.W1, self.b1.squeeze(1)))
        return weight, bias, *rest

    def mix(self, x: Tensor, state: State, reset: Tensor | None) -> tuple[Tensor, State]:
        """Run the layer; the state is the op's, its position as a float, and the convolutions' last inputs."""
        weight, bias, weight_update, bias_update, count = state[:5]
        q, k, conv_state = self._queries_and_keys(x, state[5:], reset)
        place = positions(count, x.shape[1], reset) % self.mini_batch
        q, k, v = (split_heads(part, self.heads) for part in (q, k, self.v_proj(x)))
        pairs = q.shape[-1] // 2
        frequency = 1e4 ** -(torch.arange(pairs, device=x.device, dtype=count.dtype) / max(pairs, 1))
        q, k = rotate(torch.stack([q, k]), place, frequency).unbind()
        rate = F.linear(x, self.learnable_ttt_lr_weight.squeeze(1))
        rate = torch.sigmoid(widen(rate) + widen(self.learnable_ttt_lr_bias.squeeze(1)))
        if self.learnable_token_idx is None:
            rate = rate / (q.shape[-1] * self.mini_batch)
        else:
            factor = (widen(self.learnable_token_idx) + 1 / self.mini_batch).clamp(min=0)
            rate = rate * factor[place.long()].unsqueeze(-1) / q.shape[-1]
        o, last = ttt_linear(
            q,
            k,
            v,
            rate,
            widen(self.W1),
            widen(self.b1.squeeze(1)),
            widen(self.ttt_norm_weight),
            widen(self.ttt_norm_bias),
            mini_batch=self.mini_batch,
            initial_state=TTTState(weight, bias, weight_update, bias_update, count.long()),
            reset=reset,
        )
        y = self.post_norm(o.flatten(-2))
        if self.backbone == "mamba":
            y = y * F.gelu(self.g_proj(x), approximate="tanh")
        return self.o_proj(y), (*last[:4], last.position.to(count.dtype), *conv_state)

    def _queries_and_keys(self, x: Tensor, conv_state: State, reset: Tensor | None) -> tuple[Tensor, Tensor, State]:
        if self.backbone == "transformer":
            return self.q_proj(x), self.k_proj(x), ()
        shared, (before,) = self.q_proj(x), conv_state
        (q, after), (k, _) = (
            causal_conv1d(shared, conv.weight.squeeze(1), conv.bias, initial_state=before, reset=reset)
            for conv in (self.conv_q, self.conv_k)
        )
        return q, k, (after,)
