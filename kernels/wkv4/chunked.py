"""wkv4 in PyTorch ops alone: running maximum, sums and gradients each in rounds of doubled spans, on any device."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..checks import has_values, state_dtype
from ..linear_scan.chunked import scan
from .chunks import STEPS
from .reference import empty_state


def check_rate(w: Tensor) -> None:
    """Raise ValueError naming the first entry of ``w`` that is negative or not finite, if there is one."""
    bad = ((w >= 0) & torch.isfinite(w)).logical_not_()
    if bad.any():
        place = int(bad.nonzero()[0])
        raise ValueError(
            f"wkv4: w is {w[place].item()} at ({place},) ({int(bad.sum())} such of {w.numel()}); "
            "a rate of decay must be finite and at least 0"
        )


def _maxima(k: Tensor, w: Tensor, first: Tensor, reset: Tensor | None) -> Tensor:
    """Return the largest exponent before and after every step, (B, L + 1, C): ``m_t = max(m_{t-1} - w, k_t)``."""
    m, span = torch.cat([first.unsqueeze(1), k], 1), 1
    starts = _starts(reset)
    while span < m.shape[1]:
        older = m[:, :-span] - span * w
        if starts is not None:
            older = older.masked_fill(starts[:, span:], -torch.inf)
            starts = torch.cat([starts[:, :span], starts[:, span:] | starts[:, :-span]], 1)
        m = torch.cat([m[:, :span], torch.maximum(m[:, span:], older)], 1)
        span *= 2
    return m


def _starts(reset: Tensor | None) -> Tensor | None:
    if reset is None:
        return None
    return torch.cat([reset.new_zeros(reset.shape[0], 1), reset], 1).unsqueeze(-1)


def _sums(first: Tensor, decay: Tensor, inputs: Tensor, starts: Tensor | None) -> Tensor:
    """Return ``first`` and the states ``s_t = decay_t s_{t-1} + inputs_t`` after it, (B, L + 1, C)."""
    first = first.unsqueeze(1)
    return scan(torch.cat([torch.zeros_like(first), decay], 1), torch.cat([first, inputs], 1), starts)


def _masked(x: Tensor, reset: Tensor | None, value: float) -> Tensor:
    return x if reset is None else x.masked_fill(reset.unsqueeze(-1), value)


class _Steps(NamedTuple):
    """What every step reads and writes: forward and backward both compute it."""

    states: Tensor  # p, q and m before and after every step (3, B, L + 1, C)
    before: tuple[Tensor, Tensor, Tensor]  # p, q and m that a step starts from (B, L, C)
    decay: Tensor  # of the sums, and the new step's weight in them (B, L, C)
    gain: Tensor
    past: Tensor  # the weights of the sums and of the new value in the output, less a common factor (B, L, C)
    now: Tensor
    total: Tensor  # the output's denominator (B, L, C)
    v: Tensor
    y: Tensor


def _steps(k: Tensor, v: Tensor, w: Tensor, u: Tensor, initial_state: Tensor | None, reset: Tensor | None) -> _Steps:
    dtype = state_dtype(k.dtype)
    p, q, m = (empty_state(k) if initial_state is None else initial_state).unbind(1)
    k, v, w, u = (x.to(dtype) for x in (k, v, w, u))
    maxima, starts = _maxima(k, w, m, reset), _starts(reset)
    m, after = _masked(maxima[:, :-1], reset, -torch.inf), maxima[:, 1:]
    decay, gain = torch.exp((m - after) - w), torch.exp(k - after)
    numerators, denominators = _sums(p, decay, gain * v, starts), _sums(q, decay, gain, starts)
    p, q = _masked(numerators[:, :-1], reset, 0), _masked(denominators[:, :-1], reset, 0)
    largest = torch.maximum(m, u + k)
    past, now = torch.exp(m - largest), torch.exp(u + k - largest)
    total = past * q + now
    states = torch.stack([numerators, denominators, maxima])
    return _Steps(states, (p, q, m), decay, gain, past, now, total, v, (past * p + now * v) / total)


def forward(
    k: Tensor, v: Tensor, w: Tensor, u: Tensor, initial_state: Tensor | None, reset: Tensor | None, save: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return y, the final state and, with ``save``, the state before each chunk (B, chunks, 3, C); else 0 chunks.

    Raises:
        ValueError: On the CPU: w is negative or not finite.
    """
    if has_values(k):
        check_rate(w)
    steps = _steps(k, v, w, u, initial_state, reset)
    states = steps.states.permute(1, 2, 0, 3)
    chunks = states[:, : k.shape[1] if save else 0 : STEPS].contiguous()
    return steps.y.to(k.dtype), states[:, -1].contiguous(), chunks


def backward(
    k: Tensor,
    v: Tensor,
    w: Tensor,
    u: Tensor,
    initial_state: Tensor | None,
    reset: Tensor | None,
    before: Tensor,
    dy: Tensor | None,
    dfinal: Tensor | None,
) -> tuple[Tensor, ...]:
    """Return the gradients of k, v, w, u and the initial state; of ``before`` nothing is read.

    The sums themselves do not depend on the exponent m that they are scaled by: their gradients go back by the same
    decay, and m's own goes back to the one step, or the initial state, that m came from.
    """
    s = _steps(k, v, w, u, initial_state, reset)
    p, q, m = s.before
    last = torch.zeros_like(s.states[:, :, -1]) if dfinal is None else dfinal.unbind(1)
    into = torch.zeros_like(s.y) if dy is None else dy.to(s.y.dtype) / s.total
    dread = _masked(into * s.past, reset, 0)
    starts = _starts(None if reset is None else reset.flip(1))

    def back(end: Tensor, decay: Tensor, inputs: Tensor) -> Tensor:
        return _sums(end, decay.flip(1), inputs.flip(1), starts).flip(1)

    dp, dq = back(last[0], s.decay, dread), back(last[1], s.decay, _masked(-dread * s.y, reset, 0))
    # Whether m - w exceeds k, without the rounding of m - w; at a tie each side has half of the gradient.
    ahead = m - k
    carried = ((ahead >= w).to(s.y.dtype) + (ahead > w).to(s.y.dtype)) / 2
    end = last[2] - last[0] * s.states[0, :, -1] - last[1] * s.states[1, :, -1]
    dm = back(end, carried, torch.zeros_like(carried))
    dbonus = into * s.now * (s.v - s.y)
    dk = dbonus + s.gain * (dp[:, 1:] * s.v + dq[:, 1:]) + (1 - carried) * dm[:, 1:]
    dv = into * s.now + s.gain * dp[:, 1:]
    dw = -(s.decay * (dp[:, 1:] * p + dq[:, 1:] * q) + carried * dm[:, 1:]).sum((0, 1))
    if initial_state is None:
        dinitial = s.y.new_empty(0)
    else:
        first = dp[:, 0] * initial_state[:, 0] + dq[:, 0] * initial_state[:, 1] + dm[:, 0]
        dinitial = torch.stack([dp[:, 0], dq[:, 0], first], 1)
    return dk.to(k.dtype), dv.to(v.dtype), dw.to(w.dtype), dbonus.sum((0, 1)).to(u.dtype), dinitial
