"""The definition of ttt_linear: a loop over time that autograd differentiates."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import state_dtype


class TTTState(NamedTuple):
    """ttt_linear's state: the inner model, and what its running mini-batch has gathered.

    Args:
        W: Weights at the beginning of the running mini-batch, (B, H, D, D).
        b: Bias there, (B, H, D).
        W_update: Sum of the weights' steps in the running mini-batch; the step's weights are ``W - W_update``.
        b_update: The same for the bias.
        position: Steps that the running mini-batch holds, (B,) int64 in [0, mini_batch).
    """

    W: Tensor
    b: Tensor
    W_update: Tensor
    b_update: Tensor
    position: Tensor


def saved_slots(length: int, mini_batch: int) -> int:
    """Return how many weights the forward pass keeps: those before all mini-batches but the first."""
    return (length + mini_batch - 2) // mini_batch


def places(q: Tensor, position: Tensor | None, reset: Tensor | None, mini_batch: int) -> Tensor:
    """Return each step's place in its mini-batch, (B, L)."""
    batch, length = q.shape[:2]
    time = torch.arange(length, device=q.device)
    age = time.expand(batch, length) if position is None else time + position.unsqueeze(1)
    if reset is not None:
        last = torch.where(reset, time, -1).cummax(1).values
        age = torch.where(last < 0, age, time - last)
    return age % mini_batch


def check_position(position: Tensor | None, mini_batch: int) -> None:
    """Raise ValueError unless every position lies within a mini-batch."""
    if position is not None and position.numel():
        low, high = (int(x) for x in position.aminmax())
        if low < 0 or high >= mini_batch:
            raise ValueError(
                f"ttt_linear: initial_state.position is between {low} and {high}, "
                f"expected at least 0 and below mini_batch = {mini_batch}"
            )


def ttt_linear_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    eta: Tensor,
    weights: Tensor,
    ln_weight: Tensor,
    ln_bias: Tensor,
    initial_state: Tensor | None,
    position: Tensor | None,
    reset: Tensor | None,
    mini_batch: int,
    epsilon: float,
) -> tuple[Tensor, Tensor]:
    """Train the inner model by one step of gradient descent a step of time, and read it.

    Args:
        q: Queries (B, L, H, D).
        k: Keys, what the inner model reads, (B, L, H, D).
        v: Values, what it shall return, (B, L, H, D).
        eta: Step sizes (B, L, H).
        weights: The learned first weights, the bias below them, (H, D + 1, D).
        ln_weight: Scale of the layer norm (H, D).
        ln_bias: Its bias (H, D).
        initial_state: Weights at the mini-batch's beginning and the sum of its steps (B, H, 2, D + 1, D), in the
            state's dtype; None starts from ``weights``.
        position: Steps that the running mini-batch holds (B,); None is 0.
        reset: (B, L) bool; where True a sequence starts from ``weights`` with a new mini-batch.
        mini_batch: Steps whose gradients are taken at the same weights.
        epsilon: Added to the layer norm's variance.

    Returns:
        o (B, L, H, D) in q's dtype, and the last state (B, H, 2, D + 1, D) in the state's dtype.
    """
    dtype = state_dtype(q.dtype)
    scale, shift = ln_weight.to(dtype), ln_bias.to(dtype)
    first = weights.to(dtype).expand(q.shape[0], *weights.shape)
    base, update = (first, torch.zeros_like(first)) if initial_state is None else initial_state.unbind(2)
    held = q.new_zeros(q.shape[0], dtype=torch.int64) if position is None else position
    resets = q.new_zeros(q.shape[:2], dtype=torch.bool) if reset is None else reset
    outputs: list[Tensor] = []
    for t, (q_t, k_t, v_t, eta_t) in enumerate(zip(*(x.to(dtype).unbind(1) for x in (q, k, v, eta)), strict=True)):
        starts = resets[:, t, None, None, None]
        base, update = torch.where(starts, first, base), update.masked_fill(starts, 0)
        held = held.masked_fill(resets[:, t], 0)
        error = scale * _normalised(_read(k_t, base), epsilon) + shift - (v_t - k_t)
        gradient = _through_norm(scale * error, _read(k_t, base), epsilon)
        update = update + F.pad(k_t, (0, 1), value=1.0).unsqueeze(-1) * (eta_t.unsqueeze(-1) * gradient).unsqueeze(-2)
        outputs.append(q_t + scale * _normalised(_read(q_t, base - update), epsilon) + shift)
        held = held + 1
        full = (held == mini_batch)[:, None, None, None]
        base, update = torch.where(full, base - update, base), update.masked_fill(full, 0)
        held = held % mini_batch
    return torch.stack(outputs, 1).to(q.dtype), torch.stack([base, update], 2)


def _read(x: Tensor, weights: Tensor) -> Tensor:
    """Return ``x W + b``."""
    return (x.unsqueeze(-1) * weights[..., :-1, :]).sum(-2) + weights[..., -1, :]


def _normalised(z: Tensor, epsilon: float) -> Tensor:
    return (z - z.mean(-1, keepdim=True)) / torch.sqrt(z.var(-1, unbiased=False, keepdim=True) + epsilon)


def _through_norm(gradient: Tensor, z: Tensor, epsilon: float) -> Tensor:
    """Return the gradient of z, given that of z's normalised form."""
    x, deviation = _normalised(z, epsilon), torch.sqrt(z.var(-1, unbiased=False, keepdim=True) + epsilon)
    along = (gradient * x).mean(-1, keepdim=True)
    return (gradient - gradient.mean(-1, keepdim=True) - along * x) / deviation
