"""dplr_scan in PyTorch, chunk by chunk: what serves where neither Triton nor the C++ kernels do.

What the rank-one terms read, ``y_i = S_{i-1}^T a_i``, solves one triangular system per chunk,
``(I - A_ab) y = a~ S_0 + A_ak v``: A holds the scores of one kind of rows with another, decayed from the step that
wrote to the step that reads, and a~ the rows a decayed from the chunk's beginning.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..checks import check_log_decay, has_values, state_dtype
from ..matrix_state import first_state
from ..matrix_state.chunks import (
    FLOOR,
    ROWS_CHUNK,
    SPAN,
    decay_gradient,
    floored,
    join,
    pass_gradients,
    pass_states,
    quarantine,
    split,
    spoil,
    sums_after,
    sums_before,
)
from ..matrix_state.row_scores import row_scores, row_scores_backward
from ..matrix_state.triangular import unit_lower_inverse


class _Span(NamedTuple):
    """One span in chunks (B, H, N, Q, D): what forward and backward both compute."""

    q: Tensor  # scaled
    k: Tensor
    v: Tensor
    a: Tensor
    b: Tensor
    decay: Tensor
    kept_before: Tensor  # what is left of the state before the chunk before a step's decay
    kept_after: Tensor  # the same after it
    kept_out: Tensor  # what the state after the chunk holds of a step
    kept: Tensor  # what is left of the state before the chunk after it (B, H, N, K, 1)
    a_scores: list[Tensor]  # with k and with b, both below the diagonal (B, H, N, Q, Q)
    q_scores: list[Tensor]  # the same with the diagonal
    inverse: Tensor  # (I - A_ab)^-1 (B, H, N, Q, Q)
    base: Tensor  # y of an empty state (B, H, N, Q, V)
    reads: Tensor  # how y changes with the state before the chunk (B, H, N, Q, K)

    def added(self) -> Tensor:
        """Return what the values alone add to the state after the chunk."""
        return (self.k * self.kept_out).mT @ self.v


def _span(sequences: tuple[Tensor, ...], start: int, dtype: torch.dtype) -> _Span:
    q, k, v, a, b, log_decay = (split(x[:, start : start + SPAN], ROWS_CHUNK, dtype) for x in sequences)
    decay = log_decay.exp()
    kept_before, kept_after = sums_before(log_decay).exp_(), log_decay.cumsum(-2).exp_()
    a_scores, q_scores = row_scores(decay, (k, b), a, q)
    for scores, key in zip(q_scores, (k, b), strict=True):
        scores.diagonal(dim1=-2, dim2=-1).add_((q * key).sum(-1))
    inverse = unit_lower_inverse(-a_scores[1])
    solved = inverse @ torch.cat([a_scores[0] @ v, a * kept_before], -1)
    base, reads = solved.split([v.shape[-1], k.shape[-1]], -1)
    kept, kept_out = kept_after[..., -1, :].unsqueeze(-1), sums_after(log_decay).exp_()
    return _Span(
        q, k, v, a, b, decay, kept_before, kept_after, kept_out, kept, a_scores, q_scores, inverse, base, reads
    )


def _sequences(
    q: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, log_decay: Tensor, reset: Tensor | None, scale: float
) -> tuple[Tensor, ...]:
    dtype = state_dtype(q.dtype)
    # a reads the state before the decay, so that a start's decay of 0 comes too late for it.
    a = a if reset is None else a.masked_fill(reset[..., None, None], 0)
    return scale * q.to(dtype), k, v, a, b, floored(log_decay, reset, dtype)


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    log_decay: Tensor,
    initial_state: Tensor | None,
    reset: Tensor | None,
    scale: float,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return o, the final state and, with ``save``, the state before each span (B, spans, H, K, V); else 0 spans."""
    if has_values(q):
        check_log_decay("dplr_scan", log_decay)
    initial_state, (k, v, a, b), spoilt = quarantine(reset, initial_state, (k, v, a, b))
    sequences = _sequences(q, k, v, a, b, log_decay, reset, scale)
    state = first_state(q, v.shape[3], initial_state)
    starts = range(0, q.shape[1], SPAN)
    before = state.new_empty((state.shape[0], len(starts) if save else 0, *state.shape[1:]))
    o = v.new_empty((*q.shape[:3], v.shape[3]))
    for n, start in enumerate(starts):
        if save:
            before[:, n] = state
        p = _span(sequences, start, state.dtype)
        states, state, y = pass_states(state, p.kept, p.added(), (p.b * p.kept_out, p.base, p.reads))
        assert y is not None
        part = (p.q * p.kept_after) @ states
        part += p.q_scores[0] @ p.v
        part += p.q_scores[1] @ y
        o[:, start : start + SPAN] = join(part, q.shape[1] - start)
    final = state.clone()
    spoil(o, final, spoilt)
    return o, final, before


def _span_backward(p: _Span, state: Tensor, do: Tensor, after: Tensor) -> tuple[Tensor, ...]:
    """Return the gradients of q, k, v, a, b, the log decays and the state before the span."""
    k_out, b_out = p.k * p.kept_out, p.b * p.kept_out
    q_in = p.q * p.kept_after
    states, _, y = pass_states(state, p.kept, p.added(), (b_out, p.base, p.reads))
    after, earlier, dy = pass_gradients(after, p.kept, q_in.mT @ do, (b_out, p.q_scores[1].mT @ do, p.reads))
    assert y is not None
    assert dy is not None
    through = (p.kept * states * after).sum(-1).unsqueeze(-2)
    dq_in, dk_out, db_out = do @ states.mT, p.v @ after.mT, y @ after.mT

    dright = p.inverse.mT @ torch.cat([dy, dy @ states.mT], -1)
    dvalues, da_in = dright.split([p.v.shape[-1], p.k.shape[-1]], -1)
    da_scores = [
        (dvalues @ p.v.mT).tril_(-1),
        (dright @ torch.cat([p.base, p.reads], -1).mT).tril_(-1),
    ]
    dq_scores = [do @ p.v.mT, do @ y.mT]
    dv = p.q_scores[0].mT @ do + p.a_scores[0].mT @ dvalues + k_out @ after
    (dk, db), da, dq = row_scores_backward(p.decay, (p.k, p.b), p.a, p.q, da_scores, dq_scores)
    assert da is not None
    assert dq is not None

    dlog = decay_gradient(
        p.q * (dq + dq_in * p.kept_after),
        p.a * (da + da_in * p.kept_before),
        p.k * dk + p.b * db,
        k_out * dk_out + b_out * db_out,
        through,
    )
    own_k, own_b = (x.diagonal(dim1=-2, dim2=-1).unsqueeze(-1) for x in dq_scores)
    dq += dq_in * p.kept_after + own_k * p.k + own_b * p.b
    dk += dk_out * p.kept_out + own_k * p.q
    db += db_out * p.kept_out + own_b * p.q
    da += da_in * p.kept_before
    return dq, dk, dv, da, db, dlog, earlier


def backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    log_decay: Tensor,
    initial_state: Tensor | None,
    reset: Tensor | None,
    scale: float,
    before: Tensor,
    do: Tensor | None,
    dfinal: Tensor | None,
) -> tuple[Tensor, ...]:
    """Return the gradients of q, k, v, a, b, log_decay and the initial state."""
    _, (k, v, a, b), _ = quarantine(reset, None, (k, v, a, b))
    sequences = _sequences(q, k, v, a, b, log_decay, reset, scale)
    grads = [x.new_empty(x.shape) for x in (q, k, v, a, b, log_decay)]
    after = before.new_zeros((before.shape[0], *before.shape[2:])) if dfinal is None else dfinal
    for n in reversed(range(before.shape[1])):
        part, length = slice(n * SPAN, (n + 1) * SPAN), q.shape[1] - n * SPAN
        p = _span(sequences, n * SPAN, before.dtype)
        into = torch.zeros_like(p.v) if do is None else split(do[:, part], ROWS_CHUNK, before.dtype)
        *found, after = _span_backward(p, before[:, n], into, after)
        found[0] *= scale
        for whole, piece in zip(grads, found, strict=True):
            whole[:, part] = join(piece, length)
    if reset is not None:
        grads[3].masked_fill_(reset[..., None, None], 0)
    # A decay of 0 has a gradient of 0, as the exponential has; what was summed up for it is rounding.
    grads[5].masked_fill_(sequences[5] <= FLOOR, 0)
    return *grads, after.clone()
