"""Chunks of the recurrences with a matrix state per head: what their PyTorch forms have in common.

Within a chunk everything is a matrix product; a loop over chunks carries the state. Decays are kept as logarithms and
summed from where they begin to act, never subtracted from each other, so that every exponent is at most 0 and exact to
rounding. A span of chunks is all that stands in memory at once.

A sequence is laid out as (B, H, N, Q, D): N chunks of Q steps. Steps that fill up the last chunk are zeros: they decay,
write and read nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

#: Steps whose chunks are computed at once, and between two saved states.
SPAN = 512
#: Steps between two saved states, by backend; the Triton kernels start again from the first one.
STEPS = {"chunked": SPAN, "cpu": 64, "triton": 2**30}
#: Steps of a chunk where each row of the state has a decay of its own; other chunks are of 64.
ROWS_CHUNK = 16
CHUNK = 64
#: A logarithm whose exponential is 0 in any dtype, and sums of which stay finite.
FLOOR = -1e4


def split(x: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """Return (B, T, H, D) as chunks (B, H, N, size, D)."""
    missing = -x.shape[1] % size
    x = x.to(dtype)
    if missing:
        x = F.pad(x, (0, 0, 0, 0, 0, missing))
    return x.unflatten(1, (-1, size)).permute(0, 3, 1, 2, 4).contiguous()


def join(x: Tensor, length: int) -> Tensor:
    """Return chunks (B, H, N, Q, D) as the first ``length`` steps (B, length, H, D)."""
    return x.permute(0, 2, 3, 1, 4).flatten(1, 2)[:, :length]


def floored(log_decay: Tensor, reset: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Return log decays (B or 1, L, H, D) no lower than :data:`FLOOR`, and there where a sequence starts."""
    log_decay = log_decay.to(dtype).clamp(min=FLOOR)
    return log_decay if reset is None else log_decay.masked_fill(reset[:, :, None, None], FLOOR)


def sums_before(x: Tensor) -> Tensor:
    """Return for each step of a chunk the sum over the earlier ones, (..., Q, D)."""
    return F.pad(x, (0, 0, 1, -1)).cumsum(-2)


def sums_after(x: Tensor) -> Tensor:
    """Return for each step of a chunk the sum over the later ones, (..., Q, D)."""
    return F.pad(x, (0, 0, -1, 1)).flip(-2).cumsum(-2).flip(-2)


def decay_matrix(log_decay: Tensor, exclusive: bool = False) -> Tensor:
    """Return what is left at step i of what step j < i wrote, (..., Q, Q), for one decay per step (..., Q, 1).

    Args:
        log_decay: Logarithms (..., Q, 1).
        exclusive: Step i reads before its own decay.
    """
    size = log_decay.shape[-2]
    kept = log_decay.expand(*log_decay.shape[:-1], size).tril(-1).cumsum(-2).exp_()
    return F.pad(kept, (0, 0, 1, -1)).tril_(-1) if exclusive else kept.tril_(-1)


def pass_states(
    state: Tensor, decay: Tensor, added: Tensor, correction: tuple[Tensor, Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Carry the state over chunks, ``S' = decay * S + added + keys^T y`` with ``y = base + reads S``.

    Args:
        state: The state before the first chunk, (B, H, K, V).
        decay: What a chunk leaves of it, (B or 1, H, N or 1, K or 1, 1).
        added: What a chunk adds, (B, H, N, K, V) or a scalar tensor.
        correction: keys (B, H, N, Q, K), base (B, H, N, Q, V) and reads (B, H, N, Q, K), or None.

    Returns:
        The state before each chunk (B, H, N, K, V), the last one (B, H, K, V), and y (B, H, N, Q, V) or None.
    """
    chunks = (added if correction is None else correction[0]).shape[2]
    decays = decay.expand(-1, -1, chunks, -1, -1).unbind(2)
    adds = added.unbind(2) if added.dim() else (added,) * chunks
    states, corrections = [state], []
    for n in range(chunks):
        following = torch.addcmul(adds[n], decays[n], state)
        if correction is not None:
            keys, base, reads = (x[:, :, n] for x in correction)
            y = base + reads @ state
            following += keys.mT @ y
            corrections.append(y)
        state = following
        states.append(state)
    return torch.stack(states[:-1], 2), state, torch.stack(corrections, 2) if corrections else None


def pass_gradients(
    gradient: Tensor, decay: Tensor, read: Tensor, correction: tuple[Tensor, Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Carry the gradient of the state back over chunks: the transpose of :func:`pass_states`.

    Args:
        gradient: Of the state after the last chunk, (B, H, K, V).
        decay: As in :func:`pass_states`.
        read: What a chunk's outputs add to the gradient of the state before it, (B, H, N, K, V).
        correction: keys (B, H, N, Q, K), the outputs' gradient of y (B, H, N, Q, V) and reads (B, H, N, Q, K), or None.

    Returns:
        The gradients of the state after each chunk (B, H, N, K, V), of that before the first (B, H, K, V), and of y.
    """
    decays = decay.expand(-1, -1, read.shape[2], -1, -1).unbind(2)
    gradients: list[Tensor] = []
    corrections: list[Tensor] = []
    for n in reversed(range(read.shape[2])):
        gradients.append(gradient)
        earlier = torch.addcmul(read[:, :, n], decays[n], gradient)
        if correction is not None:
            keys, base, reads = (x[:, :, n] for x in correction)
            dy = base + keys @ gradient
            earlier += reads.mT @ dy
            corrections.append(dy)
        gradient = earlier
    return torch.stack(gradients[::-1], 2), gradient, torch.stack(corrections[::-1], 2) if corrections else None


def per_decay(x: Tensor, log_decay: Tensor) -> Tensor:
    """Sum (..., K) over what shares a decay: the whole row where there is one decay per step."""
    return x.sum(-1, keepdim=True) if log_decay.shape[-1] == 1 else x


def decay_gradient(after: Tensor, before: Tensor | None, within: Tensor, handed: Tensor, through: Tensor) -> Tensor:
    """Return the gradient of the log decays of each step from what passes it.

    A contribution of step j to a later step i passes the decays between them. Counted at its end and taken back where
    its beginning is not earlier, or counted at its beginning where it goes on to the end of the chunk.

    Args:
        after: Contributions by the step that reads them after its own decay, (B, H, N, Q, D).
        before: The same for reads before the step's own decay, or None.
        within: Of both, those from steps of the chunk, by the step that wrote them.
        handed: Contributions to the state after the chunk, by the step that wrote them.
        through: Contributions of the state before the chunk to the state after it, (B, H, N, 1, D).
    """
    inside = after - within
    found = sums_after(inside) + inside + sums_before(handed) + through
    return found if before is None else found + sums_after(before)


def quarantine(
    reset: Tensor | None, initial_state: Tensor | None, tensors: Sequence[Tensor]
) -> tuple[Tensor | None, list[Tensor], Tensor | None]:
    """Keep what is not finite from leaking over a reset: a matrix product multiplies it by 0, which is NaN.

    Args:
        reset: (B, L) bool, or None: then nothing is to be done.
        initial_state: (B, H, K, V) or None.
        tensors: What the state is written from, (B, L, H, D) or (B, L, n, H, D).

    Returns:
        The initial state and the tensors with zeros for heads' steps that are not finite, and where the state is not
        finite because of them, (B, L, H) bool.
    """
    if reset is None:
        return initial_state, list(tensors), None
    bad = torch.zeros((*reset.shape, tensors[0].shape[-2]), dtype=torch.bool, device=reset.device)
    for x in tensors:
        finite = torch.isfinite(x).all(-1)
        bad |= ~(finite if x.dim() == 4 else finite.all(2))
    clean = [x.masked_fill((bad if x.dim() == 4 else bad.unsqueeze(2)).unsqueeze(-1), 0) for x in tensors]
    number = torch.arange(1, reset.shape[1] + 1, device=reset.device).unsqueeze(-1)
    last_start = (number * reset.unsqueeze(-1)).cummax(1).values
    last_bad = (number * bad).cummax(1).values
    spoilt = (last_bad >= last_start) & (last_bad > 0)
    if initial_state is not None:
        bad_first = torch.isfinite(initial_state).all(-1).all(-1).logical_not_()
        initial_state = initial_state.masked_fill(bad_first[..., None, None], 0)
        spoilt |= bad_first.unsqueeze(1) & (last_start == 0)
    return initial_state, clean, spoilt


def spoil(o: Tensor, final: Tensor, spoilt: Tensor | None) -> None:
    """Write NaN where :func:`quarantine` found the state not finite."""
    if spoilt is not None:
        o.masked_fill_(spoilt.unsqueeze(-1), torch.nan)
        final.masked_fill_(spoilt[:, -1, :, None, None], torch.nan)
