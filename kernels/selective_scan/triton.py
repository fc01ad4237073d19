"""selective_scan's Triton form: a program takes a few channels through time, chunk by chunk by an associative scan.

The states of a chunk, (CHUNK, channels, N), live in registers. The backward program recomputes them from the state
saved before the chunk: it loads each sequence one step early as well, and so gets the state before each step.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

from .chunked import CHUNK
from .cpu import rows, side_by_side

ELEMENTS = 128  # channels times states of a program: over 16 steps 8 in each of 256 threads, which spill nothing


def refuses(tensor: Tensor) -> str | None:
    """Return why the Triton kernels cannot serve ``tensor``, or None."""
    if tensor.device.type != "cuda" and (tensor.device.type != "cpu" or os.environ.get("TRITON_INTERPRET") != "1"):
        return "it serves tensors on a GPU (on the CPU only in Triton's interpreter, TRITON_INTERPRET=1)"
    if tensor.dtype == torch.float64:
        return "it computes in float32"
    return None


@triton.jit
def logistic(x):
    """Return 1 / (1 + exp(-x))."""
    e = tl.exp(-tl.abs(x))
    return tl.where(x < 0, e, 1.0) / (1.0 + e)


@triton.jit
def softplus(x):
    """Return log(1 + exp(x))."""
    # log(1 + e) as 2 artanh(e / (2 + e)): the device's own logarithm loses the digits of a small e.
    e = tl.exp(-tl.abs(x))
    s = e / (2.0 + e)
    q = s * s
    p = ((0.28011987 * q + 0.28001805) * q + 0.40021527) * q + 0.66666416
    return tl.where(x > 0, x, 0.0) + (p * q + 2.0) * s


# A zero decay selects instead of multiplying, so that a reset stops NaN too.
@triton.jit
def _merge(a1, b1, a2, b2):
    return tl.where(a2 == 0, 0.0, a1 * a2), tl.where(a2 == 0, b2, a2 * b1 + b2)


@triton.jit
def _place(channels, groups, n, BLOCK_C: tl.constexpr, BLOCK_N: tl.constexpr):
    """Return a program's group, channels and states, and the masks of those that exist."""
    per_group = channels // groups
    blocks = tl.cdiv(per_group, BLOCK_C)
    group = tl.program_id(0) // blocks
    first = (tl.program_id(0) % blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    i = tl.arange(0, BLOCK_N)
    return group, group * per_group + first, i, first < per_group, i < n


@triton.jit
def _rows(pointer, batch, step, b, t, t_mask, column, column_mask):
    """Return some steps' rows of a sequence, (T, columns), zero outside of the masks."""
    at = b * batch + t[:, None] * step + column[None, :]
    return tl.load(pointer + at, mask=t_mask[:, None] & column_mask[None, :], other=0.0).to(tl.float32)


@triton.jit
def _vector(pointer, c, mask):
    if pointer is None:
        return tl.zeros(c.shape, dtype=tl.float32)
    else:
        return tl.load(pointer + c, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _step_size(dt, batch, step, bias, b, t, t_mask, c, c_mask, SOFTPLUS: tl.constexpr):
    """Return delta and what went into softplus; delta is 0 outside of the mask, where the state then stays."""
    raw = _rows(dt, batch, step, b, t, t_mask, c, c_mask) + bias[None, :]
    delta = raw
    if SOFTPLUS:
        delta = softplus(raw)
    return tl.where(t_mask[:, None] & c_mask[None, :], delta, 0.0), raw


@triton.jit
def _power(delta, A, SIGNED: tl.constexpr):
    """Return exp(delta A) and the decay (T, C, N)."""
    power = tl.exp(delta[:, :, None] * A[None, :, :])
    return power, 2.0 * power - 1.0 if SIGNED else power


@triton.jit
def _starts(reset, b, length, t, t_mask):
    return (tl.load(reset + b * length + t, mask=t_mask, other=0) != 0)[:, None, None]


@triton.jit
def _pick(tile, steps, index):
    """Return one step of a tile (T, C, N)."""
    return tl.sum(tl.where(steps[:, None, None] == index, tile, 0.0), 0)


@triton.jit
def _forward(
    u, u_batch, u_step, dt, dt_batch, dt_step, B, B_batch, B_step, C, C_batch, C_step, z, z_batch, z_step,
    A, D, bias, initial, reset, y, final, before, length, channels, groups, n,
    SOFTPLUS: tl.constexpr, SIGNED: tl.constexpr, CHUNK: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    group, c, i, c_mask, i_mask = _place(channels, groups, n, BLOCK_C, BLOCK_N)
    b = tl.program_id(1).to(tl.int64)
    mask = c_mask[:, None] & i_mask[None, :]
    state_at = c[:, None] * n + i[None, :]
    rate = tl.load(A + state_at, mask=mask, other=0.0).to(tl.float32)
    skip, offset = _vector(D, c, c_mask), _vector(bias, c, c_mask)
    steps = tl.arange(0, CHUNK)
    h = tl.zeros([BLOCK_C, BLOCK_N], dtype=tl.float32)
    if initial is not None:
        h = tl.load(initial + b * channels * n + state_at, mask=mask, other=0.0)
    chunks = tl.cdiv(length, CHUNK)
    for k in range(chunks):
        if before is not None:
            tl.store(before + ((b * chunks + k) * n + i[None, :]) * channels + c[:, None], h, mask=mask)
        t = (k * CHUNK + steps).to(tl.int64)
        t_mask = t < length
        delta, _ = _step_size(dt, dt_batch, dt_step, offset, b, t, t_mask, c, c_mask, SOFTPLUS)
        u_t = _rows(u, u_batch, u_step, b, t, t_mask, c, c_mask)
        B_t = _rows(B, B_batch, B_step, b, t, t_mask, group * n + i, i_mask)
        C_t = _rows(C, C_batch, C_step, b, t, t_mask, group * n + i, i_mask)
        _, a = _power(delta, rate, SIGNED)
        if reset is not None:
            a = tl.where(_starts(reset, b, length, t, t_mask), 0.0, a)
        a, states = tl.associative_scan((a, (delta * u_t)[:, :, None] * B_t[:, None, :]), 0, _merge)
        states = tl.where(a == 0, states, a * h[None, :, :] + states)
        y_t = tl.sum(states * C_t[:, None, :], 2) + skip[None, :] * u_t
        if z is not None:
            z_t = _rows(z, z_batch, z_step, b, t, t_mask, c, c_mask)
            y_t *= z_t * logistic(z_t)
        at = (b * length + t)[:, None] * channels + c[None, :]
        tl.store(y + at, y_t, mask=t_mask[:, None] & c_mask[None, :])
        h = _pick(states, steps, CHUNK - 1)
    tl.store(final + b * channels * n + state_at, h, mask=mask)


@triton.jit
def _states_before(
    u, u_batch, u_step, dt, dt_batch, dt_step, B, B_batch, B_step, reset, rate, offset, h,
    b, length, t, first, c, c_mask, column, i_mask, SOFTPLUS: tl.constexpr, SIGNED: tl.constexpr,
):  # fmt: skip
    """Return the state before each step of a chunk, given the one before the first; zero where it restarts."""
    sooner = t - 1
    mask = (t < length) & (t > first)
    delta, _ = _step_size(dt, dt_batch, dt_step, offset, b, sooner, mask, c, c_mask, SOFTPLUS)
    x = delta * _rows(u, u_batch, u_step, b, sooner, mask, c, c_mask)
    _, a = _power(delta, rate, SIGNED)
    inputs = x[:, :, None] * _rows(B, B_batch, B_step, b, sooner, mask, column, i_mask)[:, None, :]
    begins = (t == first)[:, None, None]
    inputs = tl.where(begins, h[None, :, :], inputs)
    if reset is not None:
        begins = begins | _starts(reset, b, length, sooner, mask)
    _, states = tl.associative_scan((tl.where(begins, 0.0, a), inputs), 0, _merge)
    if reset is not None:
        states = tl.where(_starts(reset, b, length, t, t < length), 0.0, states)
    return states


@triton.jit
def _backward(
    u, u_batch, u_step, dt, dt_batch, dt_step, B, B_batch, B_step, C, C_batch, C_step, z, z_batch, z_step,
    A, D, bias, reset, before, dy, dy_batch, dy_step, dfinal,
    du, ddt, dA, dB, dC, dD, dz, dbias, dinitial, length, channels, groups, n,
    SOFTPLUS: tl.constexpr, SIGNED: tl.constexpr, CHUNK: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    group, c, i, c_mask, i_mask = _place(channels, groups, n, BLOCK_C, BLOCK_N)
    b = tl.program_id(1).to(tl.int64)
    mask = c_mask[:, None] & i_mask[None, :]
    state_at = b * channels * n + c[:, None] * n + i[None, :]
    rate = tl.load(A + c[:, None] * n + i[None, :], mask=mask, other=0.0).to(tl.float32)
    skip, offset = _vector(D, c, c_mask), _vector(bias, c, c_mask)
    steps, column = tl.arange(0, CHUNK), group * n + i
    # This program's own sums over its channels: (blocks, B, L, G, N).
    sums = ((tl.program_id(0) % tl.cdiv(channels // groups, BLOCK_C)) * tl.num_programs(1) + b) * length
    carry = tl.zeros([BLOCK_C, BLOCK_N], dtype=tl.float32)
    if dfinal is not None:
        carry = tl.load(dfinal + state_at, mask=mask, other=0.0)
    rate_sum = tl.zeros([BLOCK_C, BLOCK_N], dtype=tl.float32)
    skip_sum, bias_sum = tl.zeros([BLOCK_C], dtype=tl.float32), tl.zeros([BLOCK_C], dtype=tl.float32)
    chunks = tl.cdiv(length, CHUNK)
    for back in range(chunks):
        k = chunks - 1 - back
        t = (k * CHUNK + steps).to(tl.int64)
        t_mask = t < length
        row_mask = t_mask[:, None] & c_mask[None, :]
        h = tl.load(before + ((b * chunks + k) * n + i[None, :]) * channels + c[:, None], mask=mask, other=0.0)
        previous = _states_before(
            u, u_batch, u_step, dt, dt_batch, dt_step, B, B_batch, B_step, reset, rate, offset, h,
            b, length, t, k * CHUNK, c, c_mask, column, i_mask, SOFTPLUS, SIGNED,
        )  # fmt: skip
        delta, raw = _step_size(dt, dt_batch, dt_step, offset, b, t, t_mask, c, c_mask, SOFTPLUS)
        u_t = _rows(u, u_batch, u_step, b, t, t_mask, c, c_mask)
        B_t = _rows(B, B_batch, B_step, b, t, t_mask, column, i_mask)
        C_t = _rows(C, C_batch, C_step, b, t, t_mask, column, i_mask)
        x = delta * u_t
        power, a = _power(delta, rate, SIGNED)
        states = a * previous + x[:, :, None] * B_t[:, None, :]
        at = (b * length + t)[:, None] * channels + c[None, :]
        dread = tl.zeros([CHUNK, BLOCK_C], dtype=tl.float32)
        if dy is not None:
            dread = _rows(dy, dy_batch, dy_step, b, t, t_mask, c, c_mask)
        if z is not None:
            z_t = _rows(z, z_batch, z_step, b, t, t_mask, c, c_mask)
            gate = logistic(z_t)
            read = tl.sum(states * C_t[:, None, :], 2) + skip[None, :] * u_t
            tl.store(dz + at, dread * read * gate * (1.0 + z_t * (1.0 - gate)), mask=row_mask)
            dread *= z_t * gate
        row = ((sums + t) * groups + group)[:, None] * n + i[None, :]
        sum_mask = t_mask[:, None] & i_mask[None, :]
        tl.store(dC + row, tl.sum(dread[:, :, None] * states, 1), mask=sum_mask)
        # g_t = dread_t C_t + a_{t+1} g_{t+1}; the last step of the chunk takes what was carried from the next chunk.
        later = t + 1
        after, _ = _step_size(dt, dt_batch, dt_step, offset, b, later, later < length, c, c_mask, SOFTPLUS)
        _, decay = _power(after, rate, SIGNED)
        ends = (steps == CHUNK - 1)[:, None, None]
        g = dread[:, :, None] * C_t[:, None, :] + tl.where(ends, carry[None, :, :], 0.0)
        if reset is not None:
            ends = ends | _starts(reset, b, length, later, later < length)
        _, g = tl.associative_scan((tl.where(ends, 0.0, decay), g), 0, _merge, reverse=True)
        tl.store(dB + row, tl.sum(x[:, :, None] * g, 1), mask=sum_mask)
        passed = a * g
        if reset is not None:
            passed = tl.where(_starts(reset, b, length, t, t_mask), 0.0, passed)
        carry = _pick(passed, steps, 0)
        dx = tl.sum(g * B_t[:, None, :], 2)
        exponent = g * power * previous
        if SIGNED:
            exponent *= 2.0
        rate_sum += tl.sum(exponent * delta[:, :, None], 0)
        ddelta = tl.sum(exponent * rate[None, :, :], 2) + dx * u_t
        if SOFTPLUS:
            ddelta *= logistic(raw)
        tl.store(ddt + at, ddelta, mask=row_mask)
        tl.store(du + at, dx * delta + dread * skip[None, :], mask=row_mask)
        skip_sum += tl.sum(dread * u_t, 0)
        bias_sum += tl.sum(tl.where(row_mask, ddelta, 0.0), 0)
    tl.store(dA + state_at, rate_sum, mask=mask)
    tl.store(dinitial + state_at, carry, mask=mask)
    tl.store(dD + b * channels + c, skip_sum, mask=c_mask)
    tl.store(dbias + b * channels + c, bias_sum, mask=c_mask)


def _device(tensor: Tensor) -> AbstractContextManager[None]:
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def blocks(n: int, per_group: int) -> tuple[int, int, int]:
    """Return the channels and states of a program, powers of two, and its warps."""
    block_n = triton.next_power_of_2(n)
    block_c = min(32, max(1, ELEMENTS // block_n), triton.next_power_of_2(per_group))
    return block_c, block_n, 8 if block_c * block_n <= ELEMENTS else 16


def _sequence(x: Tensor | None) -> tuple[Tensor | None, int, int]:
    x = side_by_side(x)
    return x, *rows(x)[1:]


def _plain(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


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
    """Compute y, the final state and the states before each chunk; as :func:`.chunked.forward`."""
    batch, length, channels = u.shape
    groups, n = B.shape[2:]
    y, final = u.new_empty(u.shape), u.new_empty((batch, channels, n), dtype=torch.float32)
    before = u.new_empty((batch, triton.cdiv(length, CHUNK) if save else 0, n, channels), dtype=torch.float32)
    block_c, block_n, warps = blocks(n, channels // groups)
    grid = (groups * triton.cdiv(channels // groups, block_c), batch)
    if u.numel():
        with _device(u):
            _forward[grid](
                *_sequence(u), *_sequence(dt), *_sequence(B), *_sequence(C), *_sequence(z),
                *(_plain(x) for x in (A, D, dt_bias, initial_state, reset)), y, final, before if save else None,
                length, channels, groups, n, dt_softplus, signed, CHUNK, block_c, block_n, num_warps=warps,
            )  # fmt: skip
    return y, final, before


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
    """Compute the gradients of all tensors, recomputing the states chunk by chunk; as :func:`.chunked.backward`."""
    batch, length, channels = u.shape
    groups, n = B.shape[2:]
    block_c, block_n, warps = blocks(n, channels // groups)
    per_group = triton.cdiv(channels // groups, block_c)
    grid = (groups * per_group, batch)

    def fresh(*shape: int) -> Tensor:
        return u.new_empty(shape, dtype=torch.float32)

    du, ddt, dz = (u.new_empty(0 if x is None else u.shape) for x in (u, dt, z))
    # What several programs add to: each has a part of its own, summed below, so that the order of sums is fixed.
    dA, dD, dbias = fresh(batch, channels, n), fresh(batch, channels), fresh(batch, channels)
    dB, dC = fresh(per_group, *B.shape), fresh(per_group, *C.shape)
    dinitial = fresh(batch, channels, n)
    if u.numel():
        with _device(u):
            _backward[grid](
                *_sequence(u), *_sequence(dt), *_sequence(B), *_sequence(C), *_sequence(z),
                *(_plain(x) for x in (A, D, dt_bias, reset, before)), *_sequence(dy), _plain(dfinal),
                du, ddt, dA, dB, dC, dD, dz, dbias, dinitial, length, channels, groups, n,
                dt_softplus, signed, CHUNK, block_c, block_n, num_warps=warps,
            )  # fmt: skip
    vectors = (g.sum(0).to(x.dtype) if x is not None else u.new_empty(0) for g, x in ((dD, D), (dbias, dt_bias)))
    dD, dbias = vectors
    return du, ddt, dA.sum(0).to(A.dtype), dB.sum(0).to(B.dtype), dC.sum(0).to(C.dtype), dD, dz, dbias, dinitial
