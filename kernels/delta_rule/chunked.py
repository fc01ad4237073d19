"""delta_rule in PyTorch, chunk by chunk: what serves where neither Triton nor the C++ kernels do.

With y_i the correction that key i writes, ``y_i = beta_i (v_i - S^T k_i)`` and S the state that the earlier ones left,
a chunk's corrections solve one triangular system, ``(I + T) y = beta v - beta gamma k S_0`` with
``T_ij = beta_i gamma_i / gamma_j k_i . k_j`` for j < i: the UT form of the product of Householder matrices.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..checks import check_log_decay, has_values, state_dtype
from ..matrix_state import first_state
from ..matrix_state.chunks import (
    CHUNK,
    FLOOR,
    SPAN,
    decay_gradient,
    decay_matrix,
    floored,
    join,
    pass_gradients,
    pass_states,
    quarantine,
    split,
    spoil,
    sums_after,
)
from ..matrix_state.triangular import unit_lower_inverse


class _Sequences(NamedTuple):
    """The op's sequences in the form that spans are cut from; the n keys of a step stand one after the other."""

    q: Tensor  # scaled (B, L, H, K)
    k: Tensor  # (B, L n, H, K)
    v: Tensor  # (B, L n, H, V)
    beta: Tensor  # (B, L n, H, 1)
    log_decay: Tensor | None  # floored, 0 but for a step's first key (B, L n, H, 1)
    many: int  # n
    dtype: torch.dtype


class _Span(NamedTuple):
    """One span in chunks of Q steps and R = Q n keys: what forward and backward both compute."""

    q: Tensor  # (B, H, N, Q, K)
    k: Tensor  # (B, H, N, R, K)
    v: Tensor  # (B, H, N, R, V)
    beta: Tensor  # (B, H, N, R, 1)
    kept_in: Tensor  # what a key meets of the state before the chunk (.., R, 1)
    kept_out: Tensor  # what the state after the chunk holds of a key's correction (.., R, 1)
    kept: Tensor  # what is left of the state before the chunk after it (.., 1, 1)
    left: Tensor  # what key i meets of key j's correction, 1 on the diagonal (.., R, R)
    likeness: Tensor  # left * k k^T below the diagonal (B, H, N, R, R)
    inverse: Tensor  # (I + T)^-1 (B, H, N, R, R)
    base: Tensor  # the corrections of an empty state (B, H, N, R, V)
    reads: Tensor  # how they change with the state before the chunk (B, H, N, R, K)
    scores: Tensor  # the weights of the corrections in the outputs (B, H, N, Q, R)
    many: int

    def of_steps(self, x: Tensor) -> Tensor:
        """Return the rows of a step's last key, after which it is read."""
        return x[..., self.many - 1 :: self.many, :]


def _sequences(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None,
    reset: Tensor | None,
    scale: float,
) -> _Sequences:
    dtype, many = state_dtype(q.dtype), k.shape[2]
    decays = None
    if log_decay is not None or reset is not None:
        given = q.new_zeros(q.shape[:3]) if log_decay is None else log_decay
        decays = floored(given.unsqueeze(-1), reset, dtype)
        decays = torch.cat([decays, decays.new_zeros(()).expand(*decays.shape[:3], many - 1)], -1)
        decays = decays.transpose(2, 3).flatten(1, 2).unsqueeze(-1)
    return _Sequences(scale * q.to(dtype), k.flatten(1, 2), v.flatten(1, 2), beta.flatten(1, 2), decays, many, dtype)


def _span(s: _Sequences, start: int) -> _Span:
    steps = max(1, CHUNK // s.many)
    part, size = slice(start * s.many, (start + SPAN) * s.many), steps * s.many
    q = split(s.q[:, start : start + SPAN], steps, s.dtype)
    k, v, beta = (split(x[:, part], size, s.dtype) for x in (s.k, s.v, s.beta.unsqueeze(-1)))
    log_decay = k.new_zeros(1, 1, 1, size, 1) if s.log_decay is None else split(s.log_decay[:, part], size, s.dtype)
    kept_in = log_decay.cumsum(-2).exp_()
    below = decay_matrix(log_decay)
    likeness = k @ k.mT
    likeness *= below
    left = below + torch.eye(size, dtype=s.dtype, device=k.device)
    inverse = unit_lower_inverse(beta * likeness)
    solved = inverse @ torch.cat([beta * v, -beta * kept_in * k], -1)
    base, reads = solved.split([v.shape[-1], k.shape[-1]], -1)
    scores = q @ k.mT
    scores *= left[..., s.many - 1 :: s.many, :]
    kept, kept_out = kept_in[..., -1:, :], sums_after(log_decay).exp_()
    return _Span(q, k, v, beta, kept_in, kept_out, kept, left, likeness, inverse, base, reads, scores, s.many)


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None,
    initial_state: Tensor | None,
    reset: Tensor | None,
    scale: float,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return o, the final state and, with ``save``, the state before each span (B, spans, H, K, V); else 0 spans."""
    if log_decay is not None and has_values(q):
        check_log_decay("delta_rule", log_decay)
    initial_state, (k, v, beta_), spoilt = quarantine(reset, initial_state, (k, v, beta.unsqueeze(-1)))
    s = _sequences(q, k, v, beta_.squeeze(-1), log_decay, reset, scale)
    state = first_state(q, v.shape[4], initial_state)
    starts = range(0, q.shape[1], SPAN)
    before = state.new_empty((state.shape[0], len(starts) if save else 0, *state.shape[1:]))
    o = v.new_empty((*q.shape[:3], v.shape[4]))
    for n, start in enumerate(starts):
        if save:
            before[:, n] = state
        p = _span(s, start)
        states, state, y = pass_states(state, p.kept, state.new_zeros(()), (p.k * p.kept_out, p.base, p.reads))
        assert y is not None
        part = (p.q * p.of_steps(p.kept_in)) @ states
        part += p.scores @ y
        o[:, start : start + SPAN] = join(part, q.shape[1] - start)
    final = state.clone()
    spoil(o, final, spoilt)
    return o, final, before


def _span_backward(p: _Span, state: Tensor, do: Tensor, after: Tensor) -> tuple[Tensor, ...]:
    """Return the gradients of q, k, v, beta, the log decays per key and the state before the span."""
    written, read = p.k * p.kept_out, p.q * p.of_steps(p.kept_in)
    states, _, y = pass_states(state, p.kept, state.new_zeros(()), (written, p.base, p.reads))
    after, earlier, dy = pass_gradients(after, p.kept, read.mT @ do, (written, p.scores.mT @ do, p.reads))
    assert y is not None
    assert dy is not None
    dread, dwritten = do @ states.mT, y @ after.mT
    dq = dread * p.of_steps(p.kept_in)
    dk = dwritten * p.kept_out
    dscores = do @ y.mT
    pairs = dscores * p.scores  # what the pair of a step and a key gives the decays between them
    dscores *= p.of_steps(p.left)
    dq += dscores @ p.k
    dk += dscores.mT @ p.q

    dright = p.inverse.mT @ torch.cat([dy, dy @ states.mT], -1)
    dbase, dreads = dright.split([p.v.shape[-1], p.k.shape[-1]], -1)
    dlikeness = -(dright @ torch.cat([p.base, p.reads], -1).mT).tril_(-1)
    key_pairs = dlikeness * p.likeness
    met = -(dreads * p.k).sum(-1, keepdim=True) * p.kept_in
    dbeta = (dbase * p.v).sum(-1, keepdim=True) + met + key_pairs.sum(-1, keepdim=True)
    dk -= p.beta * p.kept_in * dreads
    dlikeness *= p.beta * p.left
    dk += dlikeness @ p.k
    dk += dlikeness.mT @ p.k

    at_step = torch.zeros_like(p.beta)
    p.of_steps(at_step).add_(pairs.sum(-1, keepdim=True) + (read * dread).sum(-1, keepdim=True))
    ends = at_step + p.beta * (met + key_pairs.sum(-1, keepdim=True))
    begins = (pairs.sum(-2) + (p.beta * key_pairs).sum(-2)).unsqueeze(-1)
    handed = (written * dwritten).sum(-1, keepdim=True)
    through = (p.kept * states * after).sum((-1, -2), keepdim=True)
    return dq, dk, p.beta * dbase, dbeta, decay_gradient(ends, None, begins, handed, through), earlier


def backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None,
    initial_state: Tensor | None,
    reset: Tensor | None,
    scale: float,
    before: Tensor,
    do: Tensor | None,
    dfinal: Tensor | None,
) -> tuple[Tensor, ...]:
    """Return the gradients of q, k, v, beta, log_decay and the initial state; empty for a log_decay of None."""
    _, (k, v, beta_), _ = quarantine(reset, None, (k, v, beta.unsqueeze(-1)))
    s = _sequences(q, k, v, beta_.squeeze(-1), log_decay, reset, scale)
    dq = q.new_empty(q.shape)
    dk, dv, dbeta = (x.new_empty(x.flatten(1, 2).shape) for x in (k, v, beta))
    dlog = before.new_empty(dbeta.shape)
    after = before.new_zeros((before.shape[0], *before.shape[2:])) if dfinal is None else dfinal
    for n in reversed(range(before.shape[1])):
        start = n * SPAN
        steps, keys, length = (
            slice(start, start + SPAN),
            slice(start * s.many, (start + SPAN) * s.many),
            q.shape[1] - start,
        )
        p = _span(s, start)
        into = (
            p.q.new_zeros((*p.q.shape[:-1], v.shape[4])) if do is None else split(do[:, steps], p.q.shape[3], s.dtype)
        )
        *found, after = _span_backward(p, before[:, n], into, after)
        dq[:, steps] = scale * join(found[0], length)
        dk[:, keys], dv[:, keys] = (join(x, length * s.many) for x in found[1:3])
        dbeta[:, keys], dlog[:, keys] = (join(x, length * s.many).squeeze(-1) for x in found[3:])
    shape = k.shape[1:3]
    dlog_ = q.new_empty(0)
    if log_decay is not None:
        # A decay of 0 has a gradient of 0, as the exponential has; what was summed up for it is rounding.
        assert s.log_decay is not None
        dlog_ = dlog.masked_fill_(s.log_decay.squeeze(-1) <= FLOOR, 0)[:, :: s.many].to(log_decay.dtype)
    unflat = (x.unflatten(1, shape) for x in (dk, dv, dbeta))
    return dq, *unflat, dlog_.contiguous(), after.clone()
