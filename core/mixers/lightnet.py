"""LightNet: linear attention whose keys are weights of a softmax over all steps so far."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels import gated_linear_attention, linear_scan
from ..heads import HeadNorm, count_heads, split_heads
from ..parameters import widen
from ..registry import Mixer, State, register_mixer

EMPTY = -1e30  # the logarithm of a sum over no steps: finite, so that differences are numbers


def running_logsumexp(k: Tensor, before: Tensor, reset: Tensor | None) -> Tensor:
    """Return ``z_t = log(e^before + sum_{i<=t} e^(k_i))``, the sum over the sequence that t belongs to.

    Args:
        k: (B, L, ...) in the state's dtype.
        before: (B, ...), :data:`EMPTY` where nothing came before.
        reset: (B, L) bool; where True a new sequence starts.

    Returns:
        (B, L, ...).
    """
    with torch.no_grad():
        # Any number near the largest exponent so far keeps the sums within range: z does not depend on it.
        level = torch.cat([before.unsqueeze(1), k], 1)
        if reset is not None:
            sequence = F.pad(reset, (1, 0)).cumsum(1).view(*level.shape[:2], *[1] * (k.dim() - 2))
            # Each sequence is lifted above all that went before it, so that one running maximum serves all.
            level = level.maximum(k.amin((0, 1)))
            lift = sequence * (level.amax((0, 1)) - level.amin((0, 1)) + 1)
            level = (level + lift).cummax(1).values - lift
        else:
            level = level.cummax(1).values
        fade = (level[:, :-1] - level[:, 1:]).clamp(max=0).exp()
    first = (before - level[:, 0]).exp()
    total, _ = linear_scan(fade, (k - level[:, 1:]).exp(), initial_state=first, reset=reset)
    return level[:, 1:] + total.log()


@register_mixer("lightnet")
class LightNet(Mixer):
    """Linear attention with an additive recurrence: each row of the state is a softmax average of the values.

    ``z_t = log sum_{i<=t} e^(k_i)``, ``S_t = Diag(e^(z_{t-1} - z_t)) S_{t-1} + e^(k_t - z_t) v_t^T``,
    ``o_t = S_t^T silu(q_t)``; output ``W_o (silu(W_g x) * norm(o))``, a root mean square norm over each head's own
    features. The sum over all steps does not depend on their order: one scan serves data of any number of dimensions.

    Args:
        dim: Features of the input and of the output.
        head_dim: Features of a head; None is the largest divisor of dim that is at most 64.

    Raises:
        ConfigError: head_dim does not divide dim.

    Source:
        Qin et al., You only scan once: efficient multi-dimension sequential modeling with LightNet (2024), section 3.
    """

    def __init__(self, dim: int, head_dim: int | None = None) -> None:
        heads = count_heads("LightNet", dim, head_dim)
        size = dim // heads
        super().__init__(dim, state_shapes={"scan": (heads, size, size), "logsumexp": (heads, size)})
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.g_proj, self.o_proj = (
            nn.Linear(dim, dim, bias=False) for _ in range(5)
        )
        self.norm = HeadNorm(heads, size)

    def initial_state(
        self, batch_size: int, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
    ) -> State:
        """Return the state before the first step: an empty matrix, and the logarithm of an empty sum."""
        matrix, logsumexp = super().initial_state(batch_size, device, dtype)
        return matrix, torch.full_like(logsumexp, EMPTY)

    def mix(self, x: Tensor, state: State, reset: Tensor | None) -> tuple[Tensor, State]:
        """Run the attention; the state is the heads' matrices and z."""
        q, k, v = (widen(split_heads(project(x), self.heads)) for project in (self.q_proj, self.k_proj, self.v_proj))
        z = running_logsumexp(k, state[1], reset)
        log_decay = torch.cat([state[1].unsqueeze(1), z[:, :-1]], 1) - z
        if reset is not None:
            log_decay = log_decay.masked_fill(reset[..., None, None], 0)
        o, matrix = gated_linear_attention(
            F.silu(q), (k - z).exp(), v, log_decay.clamp(max=0), scale=1.0, initial_state=state[0], reset=reset
        )
        gated = F.silu(self.g_proj(x)) * self.norm(o.to(x.dtype)).flatten(-2)
        return self.o_proj(gated), (matrix, z[:, -1])
