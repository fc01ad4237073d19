"""selective_scan in PyTorch, chunk by chunk: what serves where neither Triton nor the C++ kernels do.

The states of one chunk, (CHUNK, B, C, N), are all that ever stands in memory at once. The forward pass keeps the state
before each chunk; the backward pass recomputes a chunk's states from it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import check_finite, has_values, state_dtype
from .reference import step_size

#: Steps between two saved states, for every backend: the backward pass may run in another one than the forward pass.
CHUNK = 16


class _Chunk(NamedTuple):
    """One chunk's factors, time first: what forward and backward both compute."""

    slope: Tensor  # d a / d (delta A): exp(delta A), twice that with signed eigenvalues (T, B, C, N)
    a: Tensor  # (T, B, C, N)
    starts: Tensor | None  # reset (T, B, 1, 1)
    B: Tensor  # (T, B, G, 1, N)
    C: Tensor  # (T, B, G, 1, N)
    x: Tensor  # delta * u (T, B, C)

    def inputs(self) -> Tensor:
        """Return ``delta_t B_t u_t`` (T, B, C, N)."""
        steps, batch, groups, _, n = self.B.shape
        channels = self.x.shape[2]
        return (self.x.view(steps, batch, groups, channels // groups, 1) * self.B).view(steps, batch, channels, n)


def _time_first(sequence: Tensor, start: int, dtype: torch.dtype) -> Tensor:
    return sequence[:, start : start + CHUNK].transpose(0, 1).to(dtype).contiguous()


def _chunk(
    start: int, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, reset: Tensor | None, signed: bool
) -> _Chunk:
    d = _time_first(delta, start, A.dtype)
    slope = torch.exp_(d.unsqueeze(-1) * A)
    if signed:
        slope.mul_(2)
    starts = None if reset is None else _time_first(reset, start, torch.bool)[:, :, None, None]
    b, c = (_time_first(w, start, A.dtype).unsqueeze(3) for w in (B, C))
    return _Chunk(slope, slope - 1 if signed else slope, starts, b, c, d * _time_first(u, start, A.dtype))


def _scan(part: _Chunk, h: Tensor) -> Tensor:
    """Return the states of a chunk (T, B, C, N) from the one before it."""
    states = part.inputs()
    for t in range(states.shape[0]):
        if part.starts is not None:
            h = h.masked_fill(part.starts[t], 0)
        # Not by unbind: what is then changed in place would fix the batch of an exported program.
        h = states[t].addcmul_(part.a[t], h)
    return states


def check_decay(A: Tensor, dt: Tensor, final: Tensor) -> None:
    """Raise ValueError if A is not finite, or a final state is not because dt is not."""
    # One sum finds any non-finite entry; only then is it worth telling which tensor has it.
    if not math.isfinite((final.sum() + A.sum()).item()):
        check_finite("selective_scan", "A", A)
        check_finite("selective_scan", "dt", dt)


def forward(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    initial_state: Tensor | None,
    reset: Tensor | None,
    dt_softplus: bool,
    signed: bool,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return y, the final state and, with ``save``, the state before each chunk (B, chunks, N, C); else 0 chunks."""
    dtype = state_dtype(u.dtype)
    batch, length, channels = u.shape
    A, delta = A.to(dtype), step_size(dt, dt_bias, dt_softplus)
    h = A.new_zeros(batch, *A.shape) if initial_state is None else initial_state
    starts = range(0, length, CHUNK)
    before = A.new_empty(batch, len(starts) if save else 0, *A.shape[::-1])
    y = A.new_empty(u.shape)
    for k, start in enumerate(starts):
        if save:
            before[:, k] = h.mT
        part = _chunk(start, u, delta, A, B, C, reset, signed)
        states = _scan(part, h)
        h, steps = states[-1], states.shape[0]
        per_group = states.view(steps, batch, B.shape[2], channels // B.shape[2], A.shape[1])
        read = torch.matmul(per_group, part.C.transpose(-1, -2)).view(steps, batch, channels)
        y[:, start : start + CHUNK] = read.transpose(0, 1)
    if D is not None:
        y += D.to(dtype) * u.to(dtype)
    if z is not None:
        y *= F.silu(z.to(dtype))
    if has_values(u):
        check_decay(A, dt, h)
    return y.to(u.dtype), h.clone(), before


def _transposed_scan(part: _Chunk, g: Tensor, after: Tensor) -> Tensor:
    """Add ``a_{t+1} g_{t+1}`` to every ``g_t`` in place, ``after`` to the last; return what passes the first step."""
    for t in reversed(range(g.shape[0])):
        g[t] += after
        after = part.a[t] * g[t]
        if part.starts is not None:
            after.masked_fill_(part.starts[t], 0)
    return after


def _backward_states(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    reset: Tensor | None,
    before: Tensor,
    signed: bool,
    dread: Tensor,
    dfinal: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Go back through the recurrence from the gradient of ``C_t . h_t``.

    Returns:
        The gradients of ``delta u``, of delta through the decay, of A, B, C and the initial state, and ``C_t . h_t``.
    """
    dtype, (batch, _, channels), (groups, n) = A.dtype, u.shape, B.shape[2:]
    dx, ddelta, read = (torch.empty_like(delta) for _ in range(3))
    dA, dB, dC = torch.zeros_like(A), B.new_empty(B.shape, dtype=dtype), C.new_empty(C.shape, dtype=dtype)
    carry = A.new_zeros(batch, channels, n) if dfinal is None else dfinal
    for k in reversed(range(before.shape[1])):
        start, span = k * CHUNK, slice(k * CHUNK, (k + 1) * CHUNK)
        part = _chunk(start, u, delta, A, B, C, reset, signed)
        flat, split = part.x.shape, (part.x.shape[0], batch, groups, channels // groups)
        first = before[:, k].mT
        states = _scan(part, first)
        by_group, row = states.view(*split, n), _time_first(dread, start, dtype).view(*split[:3], 1, split[3])
        read[:, span] = torch.matmul(by_group, part.C.mT).view(flat).transpose(0, 1)
        dC[:, span] = torch.matmul(row, by_group).squeeze(3).transpose(0, 1)
        g = (row.mT * part.C).view(states.shape)
        carry = _transposed_scan(part, g, carry)
        by_group = g.view(*split, n)
        dx[:, span] = torch.matmul(by_group, part.B.mT).view(flat).transpose(0, 1)
        dB[:, span] = torch.matmul(part.x.view(row.shape), by_group).squeeze(3).transpose(0, 1)
        previous = torch.cat([first.unsqueeze(0), states[:-1]])
        if part.starts is not None:
            previous.masked_fill_(part.starts, 0)
        g.mul_(part.slope).mul_(previous)
        ddelta[:, span] = (g * A).sum(-1).transpose(0, 1)
        dA += (g * _time_first(delta, start, dtype).unsqueeze(-1)).sum((0, 1))
    return dx, ddelta, dA, dB, dC, carry, read


def backward(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    initial_state: Tensor | None,
    reset: Tensor | None,
    dt_softplus: bool,
    signed: bool,
    before: Tensor,
    dy: Tensor | None,
    dfinal: Tensor | None,
) -> tuple[Tensor, ...]:
    """Return the gradients of u, dt, A, B, C, D, z, dt_bias and the initial state; empty where the argument is None."""
    dtype = state_dtype(u.dtype)
    x, delta = u.to(dtype), step_size(dt, dt_bias, dt_softplus)
    grad = torch.zeros_like(x) if dy is None else dy.to(dtype)
    dread = grad if z is None else grad * F.silu(z.to(dtype))
    dx, ddelta, dA, dB, dC, dinitial, read = _backward_states(
        x, delta, A.to(dtype), B, C, reset, before, signed, dread, dfinal
    )
    du, ddt = dx * delta, ddelta.addcmul_(dx, x)
    if dt_softplus:
        ddt *= -torch.expm1(-delta)  # the logistic function of what went into softplus
    dD, dz, ddt_bias = (u.new_empty(0) for _ in range(3))
    if D is not None:
        du += dread * D.to(dtype)
        read += x * D.to(dtype)
        dD = (dread * x).sum((0, 1)).to(D.dtype)
    if z is not None:
        gate = z.to(dtype)
        s = torch.sigmoid(gate)
        dz = (grad * read * s * (1 + gate * (1 - s))).to(z.dtype)
    if dt_bias is not None:
        ddt_bias = ddt.sum((0, 1)).to(dt_bias.dtype)
    grads = du.to(u.dtype), ddt.to(dt.dtype), dA.to(A.dtype), dB.to(B.dtype), dC.to(C.dtype), dD, dz, ddt_bias, dinitial
    return tuple(g.contiguous() for g in grads)
