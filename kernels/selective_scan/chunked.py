"""selective_scan in PyTorch, chunk by chunk: what serves where neither Triton nor the C++ kernels do.

The states of one chunk, (CHUNK, B, C, N), are all that ever stands in memory at once. The forward pass keeps the state
before each chunk; the backward pass recomputes a chunk's states from it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import state_dtype
from .reference import step_size

#: Steps between two saved states, for every backend: the backward pass may run in another one than the forward pass.
CHUNK = 32


class _Chunk(NamedTuple):
    """One chunk's factors, time first: what forward and backward both compute."""

    slope: Tensor  # d a / d (delta A): exp(delta A), twice that with signed eigenvalues; 0 at a reset (T, B, C, N)
    a: Tensor  # (T, B, C, N)
    B: Tensor  # (T, B, G, 1, N)
    C: Tensor  # (T, B, G, 1, N)
    x: Tensor  # delta * u (T, B, C)

    def inputs(self) -> Tensor:
        """Return ``delta_t B_t u_t`` (T, B, C, N)."""
        steps, batch, groups, _, n = self.B.shape
        return (self.x.view(steps, batch, groups, -1, 1) * self.B).view(steps, batch, -1, n)


def _time_first(sequence: Tensor, start: int, dtype: torch.dtype) -> Tensor:
    return sequence[:, start : start + CHUNK].transpose(0, 1).to(dtype).contiguous()


def _chunk(
    start: int, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, reset: Tensor | None, signed: bool
) -> _Chunk:
    d = _time_first(delta, start, A.dtype)
    slope = torch.exp_(d.unsqueeze(-1) * A)
    if signed:
        slope.mul_(2)
    a = slope - 1 if signed else slope
    if reset is not None:
        kept = ~_time_first(reset, start, torch.bool)[:, :, None, None]
        slope = slope * kept
        a = a * kept if signed else slope
    weights = (_time_first(w, start, A.dtype).unsqueeze(3) for w in (B, C))
    return _Chunk(slope, a, *weights, d * _time_first(u, start, A.dtype))


def _scan(decays: Iterable[Tensor], states: Iterable[Tensor], h: Tensor) -> Tensor:
    """Add to each state in place what decays from the one before it, ``h`` before the first; return the last."""
    for a_t, h_t in zip(decays, states, strict=True):
        h = h_t.addcmul_(a_t, h)
    return h


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
    """Return y, the final state and, with ``save``, the state before each chunk (B, chunks, N, C)."""
    dtype = state_dtype(u.dtype)
    batch, length, channels = u.shape
    A, delta = A.to(dtype), step_size(dt, dt_bias, dt_softplus)
    h = A.new_zeros(batch, *A.shape) if initial_state is None else initial_state
    starts = range(0, length, CHUNK)
    before = A.new_empty((batch, len(starts), *A.shape[::-1]) if save else 0)
    y = A.new_empty(u.shape)
    for k, start in enumerate(starts):
        if save:
            before[:, k] = h.mT
        part = _chunk(start, u, delta, A, B, C, reset, signed)
        states = part.inputs()
        h = _scan(part.a.unbind(0), states.unbind(0), h)
        steps = states.shape[0]
        per_group = states.view(steps, batch, B.shape[2], -1, A.shape[1])
        read = torch.matmul(per_group, part.C.transpose(-1, -2)).view(steps, batch, channels)
        y[:, start : start + CHUNK] = read.transpose(0, 1)
    if D is not None:
        y += D.to(dtype) * u.to(dtype)
    if z is not None:
        y *= F.silu(z.to(dtype))
    return y.to(u.dtype), h.clone(), before


def _transposed_scan(g: Tensor, a: Tensor, after: Tensor) -> Tensor:
    """Run ``g_t += a_{t+1} g_{t+1}`` in place, with ``after`` beyond the last step; return ``a_1 g_1``."""
    g[-1] += after
    _scan(a.unbind(0)[:0:-1], g.unbind(0)[-2::-1], g[-1])
    return a[0] * g[0]


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
        states = part.inputs()
        first = before[:, k].mT
        _scan(part.a.unbind(0), states.unbind(0), first)
        by_group, row = states.view(*split, n), _time_first(dread, start, dtype).view(*split[:3], 1, split[3])
        read[:, span] = torch.matmul(by_group, part.C.mT).view(flat).transpose(0, 1)
        dC[:, span] = torch.matmul(row, by_group).squeeze(3).transpose(0, 1)
        g = (row.mT * part.C).view(states.shape)
        carry = _transposed_scan(g, part.a, carry)
        by_group = g.view(*split, n)
        dx[:, span] = torch.matmul(by_group, part.B.mT).view(flat).transpose(0, 1)
        dB[:, span] = torch.matmul(part.x.view(row.shape), by_group).squeeze(3).transpose(0, 1)
        g *= part.slope
        g[1:] *= states[:-1]
        g[0] *= first
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
    empty = u.new_empty(0)
    du, ddt = dx * delta, ddelta.addcmul_(dx, x)
    if dt_softplus:
        ddt *= -torch.expm1(-delta)  # the logistic function of what went into softplus
    dD = dz = ddt_bias = empty
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
    return du.to(u.dtype), ddt.to(dt.dtype), dA.to(A.dtype), dB.to(B.dtype), dC.to(C.dtype), dD, dz, ddt_bias, dinitial
