"""ttt_linear in PyTorch, one mini-batch of all rows and heads after the other, by its dual form.

The keys and queries of a mini-batch carry a further 1, so that the bias is the last row of the weights. With G the
weights at its beginning, U the steps gathered so far (not zero only where a state came in the midst of it) and E the
gradients times their step sizes, ``Y = Q (G - U) - tril(Q K^T) E`` is what the queries read and ``K^T E`` adds to U.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import state_dtype
from .reference import check_position, places, saved_slots


class _Plan(NamedTuple):
    """Which steps each mini-batch of each row holds; rows differ where sequences start or states come in."""

    steps: Tensor  # (B, M, mini_batch): indices, L where there is no step
    starts: Tensor  # (B, M): it is the first of a sequence that starts at a reset
    closes: Tensor  # (B, M): it is full
    slot: Tensor  # (B, M): where the weights before it are saved
    saved: Tensor  # (B, M): whether they are


def _plan(q: Tensor, position: Tensor | None, reset: Tensor | None, mini_batch: int) -> _Plan:
    batch, length = q.shape[:2]
    time = torch.arange(length, device=q.device)
    resets = torch.zeros_like(time, dtype=torch.bool).expand(batch, length) if reset is None else reset
    count = (length + mini_batch - 1) // mini_batch
    place = places(q, position, reset, mini_batch)
    opens = place == 0
    opens[:, 0] = True
    number = opens.cumsum(1) - 1
    if batch and (reset is not None or position is not None):
        count = int(number.amax()) + 1
    row = time - torch.where(opens, time, 0).cummax(1).values
    steps = torch.full((batch, count * mini_batch), length, device=q.device)
    steps = steps.scatter_(1, number * mini_batch + row, time.expand(batch, length)).unflatten(1, (count, mini_batch))
    first, end = steps[..., 0], torch.where(steps < length, steps, 0).amax(-1)
    there = first < length
    starts = there & resets.gather(1, first.clamp(max=length - 1))
    closes = there & (place.gather(1, end) == mini_batch - 1)
    saved = there & (first > 0) & ~starts
    return _Plan(steps, starts, closes, torch.where(saved, (first - 1) // mini_batch, 0), saved)


class _Inputs(NamedTuple):
    """The op's tensors by mini-batch, the mini-batches first: a row of zeros where there is no step."""

    q: Tensor  # (M, B, H, T, D + 1)
    k: Tensor  # (M, B, H, T, D + 1)
    v: Tensor  # (M, B, H, T, D)
    eta: Tensor  # (M, B, H, T, 1)
    first: Tensor  # the first weights (1, H, D + 1, D)
    scale: Tensor  # (H, 1, D)
    shift: Tensor  # (H, 1, D)
    epsilon: float


def _cut(x: Tensor, plan: _Plan, dtype: torch.dtype) -> Tensor:
    """Return x (B, L, H, D) as (M, B, H, T, D)."""
    padded = F.pad(x.to(dtype), (0, 0, 0, 0, 0, 1))
    rows = torch.arange(x.shape[0], device=x.device)[:, None, None]
    return padded[rows, plan.steps].permute(1, 0, 3, 2, 4)


def _join(x: Tensor, plan: _Plan, length: int) -> Tensor:
    """Return (M, B, H, T, D) as (B, L, H, D): :func:`_cut` backwards."""
    x = x.permute(1, 0, 3, 2, 4).flatten(1, 2)
    out = x.new_empty((x.shape[0], length + 1, *x.shape[2:]))
    rows = torch.arange(x.shape[0], device=x.device)[:, None]
    out[rows, plan.steps.flatten(1)] = x
    return out[:, :length]


def _inputs(
    plan: _Plan,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    eta: Tensor,
    weights: Tensor,
    ln_weight: Tensor,
    ln_bias: Tensor,
    epsilon: float,
) -> _Inputs:
    dtype = state_dtype(q.dtype)
    q, k = (_cut(F.pad(x.to(dtype), (0, 1), value=1.0), plan, dtype) for x in (q, k))
    v, eta = _cut(v, plan, dtype), _cut(eta.unsqueeze(-1), plan, dtype)
    scale, shift = (x.to(dtype).unsqueeze(1) for x in (ln_weight, ln_bias))
    return _Inputs(q, k, v, eta, weights.to(dtype).unsqueeze(0), scale, shift, epsilon)


class _Norm(NamedTuple):
    """A normalised row and by what it was divided."""

    x: Tensor
    deviation: Tensor

    def back(self, gradient: Tensor) -> Tensor:
        """Return the gradient before the norm of a gradient after it; symmetric, so that its own gradient is itself."""
        along = (gradient * self.x).mean(-1, keepdim=True)
        return (gradient - gradient.mean(-1, keepdim=True) - along * self.x) / self.deviation


def _norm(z: Tensor, epsilon: float) -> _Norm:
    variance, mean = torch.var_mean(z, -1, correction=0, keepdim=True)
    deviation = torch.sqrt(variance + epsilon)
    return _Norm((z - mean) / deviation, deviation)


class _Batch(NamedTuple):
    """One mini-batch: what forward and backward both compute."""

    key_norm: _Norm  # of K G
    error: Tensor  # what the inner model returns for the keys, less the values
    gradient: Tensor  # of the loss, before the step size
    steps: Tensor  # E: gradient times step size
    scores: Tensor  # tril(Q K^T)
    read_norm: _Norm  # of Y


def _batch(p: _Inputs, m: int, base: Tensor, weights: Tensor) -> _Batch:
    """Compute a mini-batch whose gradients are taken at ``base`` and that is read from ``weights``."""
    key_norm = _norm(p.k[m] @ base, p.epsilon)
    error = p.scale * key_norm.x + p.shift - p.v[m] + p.k[m][..., :-1]
    gradient = key_norm.back(p.scale * error)
    steps = p.eta[m] * gradient
    scores = (p.q[m] @ p.k[m].mT).tril()
    return _Batch(key_norm, error, gradient, steps, scores, _norm(p.q[m] @ weights - scores @ steps, p.epsilon))


def forward(
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
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return o, the final state and, with ``save``, the weights before mini-batches (B, slots, H, D + 1, D).

    Slot i holds what stands before the mini-batch that begins, other than by a reset, within the mini_batch steps from
    i mini_batch + 1 on: there is one at most. What stands before the first step is known.
    """
    check_position(position, mini_batch)
    plan = _plan(q, position, reset, mini_batch)
    p = _inputs(plan, q, k, v, eta, weights, ln_weight, ln_bias, epsilon)
    first = p.first.expand(q.shape[0], *weights.shape)
    base, update = (first, torch.zeros_like(first)) if initial_state is None else initial_state.unbind(2)
    slots = saved_slots(q.shape[1], mini_batch) if save else 0
    before, rows = base.new_zeros((q.shape[0], slots, *weights.shape)), torch.arange(q.shape[0], device=q.device)
    outputs = torch.empty_like(p.v)
    for m in range(p.q.shape[0]):
        starts, closes = (x[:, m, None, None, None] for x in (plan.starts, plan.closes))
        base, update = torch.where(starts, first, base), update.masked_fill(starts, 0)
        if slots:
            slot = plan.slot[:, m]
            before[rows, slot] = torch.where(plan.saved[:, m, None, None, None], base, before[rows, slot])
        found = _batch(p, m, base, base - update)
        outputs[m] = p.q[m][..., :-1] + p.scale * found.read_norm.x + p.shift
        update = update + p.k[m].mT @ found.steps
        base, update = torch.where(closes, base - update, base), update.masked_fill(closes, 0)
    o = _join(outputs, plan, q.shape[1]).to(q.dtype)
    return o.contiguous(), torch.stack([base, update], 2), before


class _Sums(NamedTuple):
    """Gradients of what all mini-batches share, summed over rows."""

    weights: Tensor  # (H, D + 1, D)
    scale: Tensor  # (H, D)
    shift: Tensor  # (H, D)


def _batch_backward(
    p: _Inputs, m: int, base: Tensor, weights: Tensor, do: Tensor, dbase: Tensor, dupdate: Tensor, sums: _Sums
) -> tuple[Tensor, ...]:
    """Return the gradients of q, k, v, eta, and of the base and the update before the mini-batch.

    ``dbase`` and ``dupdate`` are those of the base and the update after it.
    """
    f, q, k = _batch(p, m, base, weights), p.q[m], p.k[m]
    dread = f.read_norm.back(p.scale * do)
    dweights = q.mT @ dread
    dscores = -(dread @ f.steps.mT).tril()
    dq = dread @ weights.mT + dscores @ k
    dq[..., :-1] += do
    dk = dscores.mT @ q + f.steps @ dupdate.mT
    dsteps = k @ dupdate - f.scores.mT @ dread
    deta = (dsteps * f.gradient).sum(-1, keepdim=True)
    # The gradient is itself a norm's backward pass: of scale * error, which it divides and projects by the key's norm.
    x, deviation, into = f.key_norm.x, f.key_norm.deviation, p.eta[m] * dsteps
    scaled = p.scale * f.error
    dscaled = f.key_norm.back(into)
    derror = p.scale * dscaled
    dx = p.scale * derror
    dx = dx - (into * (scaled * x).mean(-1, keepdim=True) + scaled * (into * x).mean(-1, keepdim=True)) / deviation
    ddeviation = -(into * f.gradient).mean(-1, keepdim=True) / deviation
    dz = f.key_norm.back(dx) + ddeviation * x
    dk += dz @ base.mT
    dk[..., :-1] += derror
    dbase = dbase + dweights + k.mT @ dz
    sums.scale.add_((do * f.read_norm.x + dscaled * f.error + derror * x).sum((0, 2)))
    sums.shift.add_((do + derror).sum((0, 2)))
    return dq[..., :-1], dk[..., :-1], -derror, deta, dbase, dupdate - dweights


def backward(
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
    before: Tensor,
    do: Tensor | None,
    dfinal: Tensor | None,
) -> tuple[Tensor, ...]:
    """Return the gradients of q, k, v, eta, weights, ln_weight, ln_bias and the initial state (empty where None)."""
    plan = _plan(q, position, reset, mini_batch)
    p = _inputs(plan, q, k, v, eta, weights, ln_weight, ln_bias, epsilon)
    into = torch.zeros_like(p.v) if do is None else _cut(do, plan, p.v.dtype)
    first, rows = p.first.expand(q.shape[0], *weights.shape), torch.arange(q.shape[0], device=q.device)
    zero = torch.zeros_like(first)
    dbase, dupdate = (zero, zero) if dfinal is None else dfinal.unbind(2)
    sums = _Sums(*(x.new_zeros(x.shape) for x in (p.first[0], p.scale[:, 0], p.shift[:, 0])))
    found: list[list[Tensor]] = []
    for m in reversed(range(p.q.shape[0])):
        starts, closes, saved = (x[:, m, None, None, None] for x in (plan.starts, plan.closes, plan.saved))
        base, gathered = first, zero
        if m == 0 and initial_state is not None:
            base, gathered = torch.where(starts, first, initial_state[:, :, 0]), initial_state[:, :, 1]
            gathered = gathered.masked_fill(starts, 0)
        elif before.shape[1]:
            base = torch.where(saved, before[rows, plan.slot[:, m]], first)
        dupdate = torch.where(closes, -dbase, dupdate)
        *parts, dbase, dupdate = _batch_backward(p, m, base, base - gathered, into[m], dbase, dupdate, sums)
        found.append(parts)
        sums.weights.add_((dbase * starts).sum(0))
        dbase, dupdate = dbase.masked_fill(starts, 0), dupdate.masked_fill(starts, 0)
    sequences = [_join(torch.stack(x[::-1]), plan, q.shape[1]) for x in zip(*found, strict=True)]
    dq, dk, dv, deta = (
        x.to(y.dtype).contiguous() for x, y in zip(sequences, (q, k, v, eta.unsqueeze(-1)), strict=True)
    )
    dinitial = dbase.new_empty(0) if initial_state is None else torch.stack([dbase, dupdate], 2)
    if initial_state is None:
        sums.weights.add_(dbase.sum(0))
    shared = (x.to(y.dtype) for x, y in zip(sums, (weights, ln_weight, ln_bias), strict=True))
    return dq, dk, dv, deta.squeeze(-1), *shared, dinitial
