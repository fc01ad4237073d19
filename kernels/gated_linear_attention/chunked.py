"""gated_linear_attention in PyTorch, chunk by chunk: what serves where neither Triton nor the C++ kernels do."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..checks import check_log_decay, has_values, state_dtype
from ..matrix_state import first_state
from ..matrix_state.chunks import (
    CHUNK,
    FLOOR,
    ROWS_CHUNK,
    SPAN,
    decay_gradient,
    decay_matrix,
    floored,
    join,
    pass_gradients,
    pass_states,
    per_decay,
    quarantine,
    split,
    spoil,
    sums_after,
    sums_before,
)
from ..matrix_state.row_scores import row_scores, row_scores_backward


class _Sequences(NamedTuple):
    """The op's sequences in the form that spans are cut from."""

    reads: Tensor  # queries of the earlier steps, scaled (B, L, H, K)
    q: Tensor  # queries of the step itself (B, L, H, K)
    k: Tensor
    v: Tensor
    log_decay: Tensor  # floored (B or 1, L, H, K or 1)
    bonus: Tensor | None  # (H, 1, 1, K)
    constant: bool  # the same decay at every step
    dtype: torch.dtype


class _Span(NamedTuple):
    """One span in chunks (B, H, N, Q, D): what forward and backward both compute."""

    reads: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    log_decay: Tensor
    bonus: Tensor | None
    kept_in: Tensor  # what a step reads of the state before the chunk
    kept_out: Tensor  # what the state after the chunk holds of a step
    kept: Tensor  # what is left of the state before the chunk after it (.., K or 1, 1)

    @property
    def by_row(self) -> bool:
        return self.log_decay.shape[-1] > 1

    def own(self) -> Tensor:
        """Return the weight of a step's own key in its score."""
        return self.k if self.bonus is None else self.k * self.bonus


def _sequences(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    bonus: Tensor | None,
    reset: Tensor | None,
    scale: float,
) -> _Sequences:
    dtype = state_dtype(q.dtype)
    constant = log_decay.dim() == 1 and reset is None
    if log_decay.dim() == 1:
        log_decay = log_decay.expand(1, q.shape[1], -1)
    if log_decay.dim() == 3:
        log_decay = log_decay.unsqueeze(-1)
    queries = scale * q.to(dtype)
    # With a bonus a step reads the state before its own decay, so that a start's decay of 0 comes too late for it.
    reads = queries if bonus is None or reset is None else queries.masked_fill(reset[..., None, None], 0)
    own = None if bonus is None else bonus.to(dtype)[:, None, None]
    return _Sequences(reads, queries, k, v, floored(log_decay, reset, dtype), own, constant, dtype)


def _span(s: _Sequences, start: int) -> _Span:
    by_row, part = s.log_decay.shape[3] > 1, slice(start, start + SPAN)
    size = ROWS_CHUNK if by_row else CHUNK
    reads, k, v = (split(x[:, part], size, s.dtype) for x in (s.reads, s.k, s.v))
    q = reads if s.q is s.reads else split(s.q[:, part], size, s.dtype)
    log_decay = s.log_decay[:, part]
    if s.constant and log_decay.shape[1] % size == 0:
        log_decay = log_decay[:, :size]
    log_decay = split(log_decay, size, s.dtype)
    read = log_decay.cumsum(-2) if s.bonus is None else sums_before(log_decay)
    kept = log_decay.sum(-2).exp_().unsqueeze(-1)
    return _Span(reads, q, k, v, log_decay, s.bonus, read.exp_(), sums_after(log_decay).exp_(), kept)


def _scores(p: _Span) -> Tensor:
    """Return the weights of the chunk's values in its outputs, (B, H, N, Q, Q)."""
    exclusive = p.bonus is not None
    if p.by_row:
        before, after = row_scores(p.log_decay.exp(), (p.k,), *((p.reads, None) if exclusive else (None, p.reads)))
        scores = (before or after)[0]
    else:
        scores = p.reads @ p.k.mT
        scores *= decay_matrix(p.log_decay, exclusive)
    scores.diagonal(dim1=-2, dim2=-1).add_((p.q * p.own()).sum(-1))
    return scores


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    bonus: Tensor | None,
    initial_state: Tensor | None,
    reset: Tensor | None,
    scale: float,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return o, the final state and, with ``save``, the state before each span (B, spans, H, K, V); else 0 spans."""
    if has_values(q):
        check_log_decay("gated_linear_attention", log_decay)
    initial_state, (k, v), spoilt = quarantine(reset, initial_state, (k, v))
    s = _sequences(q, k, v, log_decay, bonus, reset, scale)
    state = first_state(q, v.shape[3], initial_state)
    starts = range(0, q.shape[1], SPAN)
    before = state.new_empty((state.shape[0], len(starts) if save else 0, *state.shape[1:]))
    o = v.new_empty((*q.shape[:3], v.shape[3]))
    for n, start in enumerate(starts):
        if save:
            before[:, n] = state
        p = _span(s, start)
        states, state, _ = pass_states(state, p.kept, (p.k * p.kept_out).mT @ p.v)
        part = (p.reads * p.kept_in) @ states
        part += _scores(p) @ p.v
        o[:, start : start + SPAN] = join(part, q.shape[1] - start)
    final = state.clone()
    spoil(o, final, spoilt)
    return o, final, before


def _scores_backward(p: _Span, dscores: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of reads and k from those of the scores below the diagonal."""
    exclusive = p.bonus is not None
    if not p.by_row:
        dscores = dscores * decay_matrix(p.log_decay, exclusive)
        return dscores @ p.k, dscores.mT @ p.reads
    before, after = (p.reads, None) if exclusive else (None, p.reads)
    dbefore, dafter = ([dscores], []) if exclusive else ([], [dscores])
    (dk,), *found = row_scores_backward(p.log_decay.exp(), (p.k,), before, after, dbefore, dafter)
    dreads = found[0] if exclusive else found[1]
    assert dreads is not None
    return dreads, dk


def _span_backward(p: _Span, state: Tensor, do: Tensor, after: Tensor) -> tuple[Tensor, ...]:
    """Return the gradients of reads, q, k, v, log_decay, the bonus and the state before the span."""
    written, read = p.k * p.kept_out, p.reads * p.kept_in
    states, _, _ = pass_states(state, p.kept, written.mT @ p.v)
    after, earlier, _ = pass_gradients(after, p.kept, read.mT @ do)
    dscores = do @ p.v.mT
    down = dscores.diagonal(dim1=-2, dim2=-1).unsqueeze(-1)
    dread, dwritten = do @ states.mT, p.v @ after.mT
    dv = _scores(p).mT @ do
    dv += written @ after
    through = per_decay((p.kept * states * after).sum(-1), p.log_decay).unsqueeze(-2)
    dreads, dk = _scores_backward(p, dscores)
    inside, within = per_decay(p.reads * dreads, p.log_decay), per_decay(p.k * dk, p.log_decay)
    crossing, handed = per_decay(read * dread, p.log_decay), per_decay(written * dwritten, p.log_decay)
    reading = inside + crossing
    if p.bonus is None:
        dlog = decay_gradient(reading, None, within, handed, through)
    else:
        dlog = decay_gradient(torch.zeros_like(reading), reading, within, handed, through)
    dreads += dread * p.kept_in
    dk += dwritten * p.kept_out
    own = down * p.q
    dbonus = (own * p.k).sum((0, 2, 3))
    dk += own if p.bonus is None else own * p.bonus
    return dreads, down * p.own(), dk, dv, dlog, dbonus, earlier


def backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    bonus: Tensor | None,
    initial_state: Tensor | None,
    reset: Tensor | None,
    scale: float,
    before: Tensor,
    do: Tensor | None,
    dfinal: Tensor | None,
) -> tuple[Tensor, ...]:
    """Return the gradients of q, k, v, log_decay, the bonus and the initial state; empty for a bonus of None."""
    _, (k, v), _ = quarantine(reset, None, (k, v))
    s = _sequences(q, k, v, log_decay, bonus, reset, scale)
    dq, dk, dv = (x.new_empty(x.shape) for x in (q, k, v))
    dlog = before.new_empty((*q.shape[:3], s.log_decay.shape[3]))
    dbonus = before.new_zeros(q.shape[2:])
    after = before.new_zeros((before.shape[0], *before.shape[2:])) if dfinal is None else dfinal
    for n in reversed(range(before.shape[1])):
        start = n * SPAN
        part, length = slice(start, start + SPAN), q.shape[1] - start
        p = _span(s, start)
        into = torch.zeros_like(p.v) if do is None else split(do[:, part], p.v.shape[3], s.dtype)
        dreads, down, dk_, dv_, dlog_, dbonus_, after = _span_backward(p, before[:, n], into, after)
        dreads = join(dreads, length)
        if reset is not None and s.reads is not s.q:
            dreads = dreads.masked_fill(reset[:, part, None, None], 0)
        dq[:, part] = scale * (dreads + join(down, length))
        dk[:, part], dv[:, part], dlog[:, part] = (join(x, length) for x in (dk_, dv_, dlog_))
        dbonus += dbonus_
    # A decay of 0 has a gradient of 0, as the exponential has; what was summed up for it is rounding.
    dlog.masked_fill_(s.log_decay <= FLOOR, 0)
    dlog = dlog.sum((0, 1)) if log_decay.dim() == 1 else dlog
    return (
        dq,
        dk,
        dv,
        dlog.reshape(log_decay.shape).to(log_decay.dtype),
        q.new_empty(0) if bonus is None else dbonus.to(bonus.dtype),
        after.clone(),
    )
