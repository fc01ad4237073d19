"""Scores between the steps of a chunk where each row of the state has a decay of its own.

``sum_k x_ik y_jk prod_{j < t <= i} w_tk`` for all j < i: the decayed keys are kept and multiplied by one decay after
the other, so that no exponent, no quotient and no product above the key itself ever appears.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _step_first(x: Tensor) -> Tensor:
    """Return chunks (B, H, N, Q, K) as (Q, B H N, K)."""
    return x.flatten(0, 2).transpose(0, 1).contiguous()


def _keys_first(keys: tuple[Tensor, ...]) -> Tensor:
    """Return C sets of keys as one (Q, C, B H N, K)."""
    steps = [_step_first(x) for x in keys]
    held = steps[0].new_empty((steps[0].shape[0], len(steps), *steps[0].shape[1:]))
    for c, x in enumerate(steps):
        held[:, c] = x
    return held


def _gathered(scores: list[Tensor]) -> Tensor | None:
    """Return sets of scores (B, H, N, Q, Q) as one (Q, Q, C, B H N, 1)."""
    return torch.stack([x.flatten(0, 2).permute(1, 2, 0) for x in scores], 2).unsqueeze(-1) if scores else None


def row_scores(
    decay: Tensor, keys: tuple[Tensor, ...], before: Tensor | None, after: Tensor | None
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the scores of two kinds of queries, each (B, H, N, Q, Q) below the diagonal, one for each set of keys.

    Args:
        decay: Of each step, (B or 1, H, N, Q, K).
        keys: Sets of keys, each (B, H, N, Q, K).
        before: Queries that read before their step's own decay, or None.
        after: Queries that read after it, or None.

    Returns:
        The scores of ``before`` and those of ``after``; empty lists for None.
    """
    held, factors = _keys_first(keys), _step_first(decay.expand_as(keys[0]))
    size, sets, chunks, _ = held.shape
    kinds = [None if x is None else _step_first(x) for x in (before, after)]
    scores = [None if x is None else held.new_zeros(size, size, sets, chunks) for x in (before, after)]
    for i in range(1, size):
        for kind, (queries, found) in enumerate(zip(kinds, scores, strict=True)):
            if kind == 1:
                held[:i] *= factors[i]
            if queries is not None and found is not None:
                found[i, :i] = (held[:i] * queries[i]).sum(-1)
    shape = keys[0].shape[:3]
    # Not by unbind: what is then changed in place, as callers do, would fix the batch of an exported program.
    split = [
        [] if s is None else [s[:, :, j].permute(2, 0, 1).unflatten(0, shape) for j in range(sets)] for s in scores
    ]
    return split[0], split[1]


def row_scores_backward(
    decay: Tensor,
    keys: tuple[Tensor, ...],
    before: Tensor | None,
    after: Tensor | None,
    dbefore: list[Tensor],
    dafter: list[Tensor],
) -> tuple[list[Tensor], Tensor | None, Tensor | None]:
    """Return the gradients of the keys, ``before`` and ``after`` from those of :func:`row_scores`' results."""
    held, factors = _keys_first(keys), _step_first(decay.expand_as(keys[0]))
    size, shape = held.shape[0], keys[0].shape
    kinds = [None if x is None else _step_first(x) for x in (before, after)]
    scores = [_gathered(d) for d in (dbefore, dafter)]
    found = [None if x is None else x.new_zeros(x.shape) for x in kinds]
    for i in range(1, size):
        for kind, (into, given) in enumerate(zip(found, scores, strict=True)):
            if kind == 1:
                held[:i] *= factors[i]
            if into is not None and given is not None:
                into[i] = (held[:i] * given[i, :i]).sum((0, 1))
    dkeys = held.zero_()
    for i in reversed(range(1, size)):
        for kind in (1, 0):
            queries, given = kinds[kind], scores[kind]
            if queries is not None and given is not None:
                dkeys[:i] += given[i, :i] * queries[i]
            if kind == 1:
                dkeys[:i] *= factors[i]
    dbefore_, dafter_ = (None if x is None else x.transpose(0, 1).reshape(shape) for x in found)
    return [x.transpose(0, 1).reshape(shape) for x in dkeys.unbind(1)], dbefore_, dafter_
