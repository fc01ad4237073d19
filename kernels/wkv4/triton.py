"""wkv4's Triton form: a program takes some channels of one batch entry through time, their state in registers."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..checks import state_dtype
from ..linear_scan.triton import refuses
from ..matrix_state.triton_tiles import on_device
from ..selective_scan.cpu import rows, side_by_side
from .chunks import STEPS

__all__ = ["backward", "forward", "refuses"]

CHANNELS = 32  # one warp, a channel in each thread: what a step needs stays in the thread


@triton.jit
def _place(channels, BLOCK: tl.constexpr):
    """Return a program's batch entry, its channels and the mask of those that exist."""
    blocks = tl.cdiv(channels, BLOCK)
    c = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    return (tl.program_id(0) // blocks).to(tl.int64), c, c < channels


@triton.jit
def _row(pointer, batch, step, b, t, c, mask, STATE: tl.constexpr):
    """Return one step of a sequence; b has 64 bits, which the product of t and its stride may need."""
    return tl.load(pointer + b * batch + (0 * b + t) * step + c, mask=mask, other=0.0).to(STATE)


@triton.jit
def _state(pointer, channels, c, mask):
    p = tl.load(pointer + c, mask=mask, other=0.0)
    q = tl.load(pointer + channels + c, mask=mask, other=0.0)
    return p, q, tl.load(pointer + 2 * channels + c, mask=mask, other=0.0)


@triton.jit
def _put(pointer, channels, c, mask, p, q, m):
    tl.store(pointer + c, p, mask=mask)
    tl.store(pointer + channels + c, q, mask=mask)
    tl.store(pointer + 2 * channels + c, m, mask=mask)


@triton.jit
def _restart(reset, at, p, q, m):
    """Return the state that a step starts from: empty where a sequence begins."""
    if reset is not None:
        starts = tl.load(reset + at) != 0
        p = tl.where(starts, 0.0, p)
        q = tl.where(starts, 0.0, q)
        m = tl.where(starts, float("-inf"), m)
    return p, q, m


@triton.jit
def _factors(m, k, w):
    """Return how a step fades the sums, the weight of its own value in them, and the new maximum."""
    after = tl.maximum(m - w, k)
    # In this order the rounding of m - w, which would add up over slow decays, drops out.
    return tl.exp((m - after) - w), tl.exp(k - after), after


@triton.jit
def _read(p, q, m, k, v, u):
    """Return the output, the weights of the sums and of the new value in it, and its denominator."""
    ahead = u + k - m
    ratio = tl.exp(-tl.abs(ahead))
    past = tl.where(ahead < 0, 1.0, ratio)
    now = tl.where(ahead < 0, ratio, 1.0)
    total = past * q + now
    return (past * p + now * v) / total, past, now, total


@triton.jit
def _forward(
    k, k_batch, k_step, v, v_batch, v_step, w, u, initial, reset, y, final, before, length, channels,
    STATE: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    b, c, mask = _place(channels, BLOCK)
    rate = tl.load(w + c, mask=mask, other=0.0).to(STATE)
    bonus = tl.load(u + c, mask=mask, other=0.0).to(STATE)
    p = tl.zeros([BLOCK], dtype=STATE)
    q = p
    m = p + float("-inf")
    if initial is not None:
        p, q, m = _state(initial + b * 3 * channels, channels, c, mask)
    chunks = tl.cdiv(length, CHUNK)
    for n in range(chunks):
        if before is not None:
            _put(before + (b * chunks + n) * 3 * channels, channels, c, mask, p, q, m)
        for t in range(n * CHUNK, tl.minimum(length, (n + 1) * CHUNK)):
            at = b * length + t
            p, q, m = _restart(reset, at, p, q, m)
            k_t = _row(k, k_batch, k_step, b, t, c, mask, STATE)
            v_t = _row(v, v_batch, v_step, b, t, c, mask, STATE)
            out, _, _, _ = _read(p, q, m, k_t, v_t, bonus)
            tl.store(y + at * channels + c, out, mask=mask)
            decay, gain, m = _factors(m, k_t, rate)
            p = decay * p + gain * v_t
            q = decay * q + gain
    _put(final + b * 3 * channels, channels, c, mask, p, q, m)


@triton.jit
def _backward(
    k, k_batch, k_step, v, v_batch, v_step, w, u, initial, reset, before, dy, dy_batch, dy_step, dfinal, states,
    dk, dv, dw, du, dinitial, length, channels,
    STATE: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    b, c, mask = _place(channels, BLOCK)
    rate = tl.load(w + c, mask=mask, other=0.0).to(STATE)
    bonus = tl.load(u + c, mask=mask, other=0.0).to(STATE)
    # The sums do not depend on the exponent m that they are scaled by: their gradients gp, gq go back by the same
    # decay, and m's own, gm, to the one step that m came from.
    gp = tl.zeros([BLOCK], dtype=STATE)
    gq, gm, sum_w, sum_u = gp, gp, gp, gp
    chunks = tl.cdiv(length, CHUNK)
    for i in range(chunks):
        n = chunks - 1 - i
        p, q, m = _state(before + (b * chunks + n) * 3 * channels, channels, c, mask)
        steps = tl.minimum(CHUNK, length - n * CHUNK)
        for s in range(steps):
            t = n * CHUNK + s
            p, q, m = _restart(reset, b * length + t, p, q, m)
            _put(states + (b * CHUNK + s) * 3 * channels, channels, c, mask, p, q, m)
            k_t = _row(k, k_batch, k_step, b, t, c, mask, STATE)
            v_t = _row(v, v_batch, v_step, b, t, c, mask, STATE)
            decay, gain, m = _factors(m, k_t, rate)
            p = decay * p + gain * v_t
            q = decay * q + gain
        if dfinal is not None:  # noqa: SIM102 known to the compiler, unlike i
            if i == 0:
                gp, gq, gm = _state(dfinal + b * 3 * channels, channels, c, mask)
                gm -= gp * p + gq * q
        for r in range(steps):
            s = steps - 1 - r
            t = n * CHUNK + s
            at = b * length + t
            # Each thread reads what it wrote itself.
            p, q, m = _state(states + (b * CHUNK + s) * 3 * channels, channels, c, mask)
            k_t = _row(k, k_batch, k_step, b, t, c, mask, STATE)
            v_t = _row(v, v_batch, v_step, b, t, c, mask, STATE)
            decay, gain, _ = _factors(m, k_t, rate)
            out, past, now, total = _read(p, q, m, k_t, v_t, bonus)
            into = tl.zeros([BLOCK], dtype=STATE)
            if dy is not None:
                into = _row(dy, dy_batch, dy_step, b, t, c, mask, STATE) / total
            own = into * now * (v_t - out)
            # Whether m - w exceeds k, without the rounding of m - w; at a tie each side has half of the gradient.
            ahead = m - k_t
            carried = tl.where(ahead > rate, 1.0, tl.where(ahead == rate, 0.5, 0.0))
            tl.store(dk + at * channels + c, own + gain * (gp * v_t + gq) + (1.0 - carried) * gm, mask=mask)
            tl.store(dv + at * channels + c, into * now + gain * gp, mask=mask)
            gp, gq, gm = gp * decay, gq * decay, gm * carried
            sum_u += own
            sum_w -= gp * p + gq * q + gm
            gp += into * past
            gq -= into * past * out
            if reset is not None:
                starts = tl.load(reset + at) != 0
                gp = tl.where(starts, 0.0, gp)
                gq = tl.where(starts, 0.0, gq)
                gm = tl.where(starts, 0.0, gm)
    tl.store(dw + b * channels + c, sum_w, mask=mask)
    tl.store(du + b * channels + c, sum_u, mask=mask)
    if initial is not None:
        p, q, m = _state(initial + b * 3 * channels, channels, c, mask)
        _put(dinitial + b * 3 * channels, channels, c, mask, gp, gq, gm + gp * p + gq * q)


def _options(k: Tensor) -> tuple[tuple[int], dict[str, object]]:
    """Return the grid and what a kernel is compiled for."""
    state = tl.float64 if k.dtype == torch.float64 else tl.float32
    grid = (k.shape[0] * triton.cdiv(k.shape[2], CHANNELS),)
    return grid, {"STATE": state, "CHUNK": STEPS, "BLOCK": CHANNELS, "num_warps": 1}


def _sequence(x: Tensor | None) -> tuple[Tensor | None, int, int]:
    x = side_by_side(x)
    return (x, *rows(x)[1:])


def forward(
    k: Tensor, v: Tensor, w: Tensor, u: Tensor, initial_state: Tensor | None, reset: Tensor | None, save: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute y, the final state and the states before each chunk; as :func:`.chunked.forward`, w unchecked."""
    dtype, (batch, length, channels) = state_dtype(k.dtype), k.shape
    y, final = k.new_empty(k.shape), k.new_empty((batch, 3, channels), dtype=dtype)
    before = k.new_empty((batch, triton.cdiv(length, STEPS) if save else 0, 3, channels), dtype=dtype)
    if k.numel():
        grid, options = _options(k)
        initial, starts = (x if x is None else x.contiguous() for x in (initial_state, reset))
        with on_device(k):
            _forward[grid](
                *_sequence(k), *_sequence(v), w.contiguous(), u.contiguous(), initial, starts, y, final,
                before if save else None, length, channels, **options,
            )  # fmt: skip
    return y, final, before


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
    """Compute the gradients, recomputing the states chunk by chunk; as :func:`.chunked.backward`."""
    dtype, (batch, length, channels) = state_dtype(k.dtype), k.shape
    dk, dv = (k.new_empty(k.shape) for _ in range(2))
    dw, du = (k.new_zeros((batch, channels), dtype=dtype) for _ in range(2))
    states = k.new_empty((batch, STEPS, 3, channels), dtype=dtype)
    dinitial = states.new_empty(0 if initial_state is None else initial_state.shape)
    if k.numel():
        grid, options = _options(k)
        initial, starts, last = (x if x is None else x.contiguous() for x in (initial_state, reset, dfinal))
        with on_device(k):
            _backward[grid](
                *_sequence(k), *_sequence(v), w.contiguous(), u.contiguous(), initial, starts, before.contiguous(),
                *_sequence(dy), last, states, dk, dv, dw, du, dinitial, length, channels, **options,
            )  # fmt: skip
    return dk, dv, dw.sum(0).to(w.dtype), du.sum(0).to(u.dtype), dinitial
