"""The Triton kernels that run a matrix-state recurrence; see :mod:`.triton_tiles`.

Chunks in parallel: how much each step reads of what each earlier step wrote (``scores``); what steps read of each other
makes a unit lower triangular system, whose inverse turns the reads into ``u = U + W S`` with the state S before the
chunk. Then one pass over the chunks, which holds the state.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .triton_tiles import (
    EXACT,
    Recurrence,
    between,
    between_rows,
    from_start,
    on_device,
    place,
    present,
    put_rows,
    rows,
    segment,
    sequence,
    to_end,
    total,
)

SLICE = 16  # columns of the keys for which such a block holds every pair of steps
SUB = 16  # steps of a block in which decays per row of the state are summed pair by pair


@triton.jit
def _scores(
    z, z_b, z_t, z_h, y, y_b, y_t, y_h, g, g_b, g_t, g_h, bonus, segments, faults, out, length, heads, width, chunks,
    Z_PER: tl.constexpr, LAG: tl.constexpr, SUB: tl.constexpr, SLICE: tl.constexpr,
    PER: tl.constexpr, VECTOR: tl.constexpr, C: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Store z_t . (decay from s to t) y_s for the steps t of a block (rows) and s of a chunk, s <= t - LAG."""
    b, h, chunk, part, number = place(chunks, heads, C // SUB)
    i, column = tl.arange(0, SUB), tl.arange(0, BLOCK_K)
    first = chunk * C + part * SUB
    if first >= length:
        return
    t = first + i
    ok = present(faults, b, h, t, length, heads)
    z_rows = rows(z, z_b, z_t, z_h, b, h, t, ok, column, width, Z_PER)
    y_rows = rows(y, y_b, y_t, y_h, b, h, t, ok, column, width, 1)
    line = out + (number * C + part * SUB + i)[:, None] * C
    if VECTOR:
        # Blocks to the left go by the state of decay at this block's start.
        row = tl.arange(0, C)
        s, s_mask = chunk * C + row, row < part * SUB
        s_mask = s_mask & present(faults, b, h, s, length, heads)
        y_past = rows(y, y_b, y_t, y_h, b, h, s, s_mask, column, width, 1)
        y_past *= to_end(g, g_b, g_t, g_h, b, h, s, first - 1, faults, length, heads, column, width, PER, VECTOR)
        z_past = z_rows * from_start(
            g, g_b, g_t, g_h, b, h, t, first, faults, length, heads, column, width, PER, LAG, VECTOR
        )
        past = tl.dot(z_past, tl.trans(y_past), input_precision=PRECISION)
        if segments is not None:
            ours, theirs = segment(segments, b, t, length, PER), segment(segments, b, s, length, PER)
            past = tl.where(ours[:, None] == theirs[None, :], past, 0.0)
        tl.store(line + row[None, :], past, mask=(row < part * SUB)[None, :] & (i >= 0)[:, None])
        tile = tl.zeros([SUB, SUB], dtype=tl.float32)
        for begin in range(0, width, SLICE):
            k = begin + tl.arange(0, SLICE)
            decay = between_rows(g, g_b, g_t, g_h, b, h, t, first, faults, length, heads, i, k, width, PER, LAG)
            z_part = rows(z, z_b, z_t, z_h, b, h, t, ok, k, width, Z_PER)
            y_part = rows(y, y_b, y_t, y_h, b, h, t, ok, k, width, 1)
            tile += tl.sum(z_part[:, None, :] * y_part[None, :, :] * decay, 2)
    else:
        tile = tl.dot(z_rows, tl.trans(y_rows), input_precision=PRECISION)
        tile *= between(g, g_b, g_t, g_h, b, h, t, first, faults, length, heads, i, PER, LAG)
    tile = tl.where(i[:, None] - LAG >= i[None, :], tile, 0.0)
    if segments is not None:
        ours = segment(segments, b, t, length, PER)
        tile = tl.where(ours[:, None] == ours[None, :], tile, 0.0)
    if bonus is not None:
        weight = tl.load(bonus + h * width + column, mask=column < width, other=0.0).to(tl.float32)
        own = tl.sum(z_rows * y_rows * weight[None, :], 1)
        tile = tl.where(i[:, None] == i[None, :], own[:, None], tile)
    tl.store(line + part * SUB + i[None, :], tile)


@triton.jit
def _invert(scores, inverse, length, chunks, C: tl.constexpr):
    """Store the diagonal blocks of 16 of T = (I - scores)^-1, by forward substitution."""
    number = tl.program_id(0).to(tl.int64)
    row, column = tl.arange(0, 16)[None, :, None], tl.arange(0, 16)[None, None, :]
    block = tl.arange(0, C // 16)[:, None, None]
    at = (number * C + block * 16 + row) * C + block * 16 + column
    below = (row > column) & (number % chunks * C + block * 16 + row < length)
    weights = tl.load(scores + at, mask=below, other=0.0)
    T = tl.where((row == column) & (block >= 0), 1.0, 0.0)
    for j in range(1, 16):
        weight = tl.sum(tl.where(row == j, weights, 0.0), 1)
        T += tl.where(row == j, tl.sum(weight[:, :, None] * T, 1)[:, None, :], 0.0)
    tl.store(inverse + at, T)


@triton.jit
def _join(scores, inverse, length, chunks, SIZE: tl.constexpr, C: tl.constexpr, EXACT: tl.constexpr):
    """Join the inverses T1 and T2 of two neighbouring diagonal blocks: below T1 and beside T2 lies T2 scores T1."""
    pair, number = tl.program_id(0) % (C // (2 * SIZE)), (tl.program_id(0) // (C // (2 * SIZE))).to(tl.int64)
    i, begin = tl.arange(0, SIZE), pair * 2 * SIZE
    upper = (number * C + begin + i)[:, None] * C + begin + i[None, :]
    lower = upper + SIZE * C
    inside = (number % chunks * C + begin + SIZE + i < length)[:, None]
    tile = tl.load(scores + lower, mask=inside, other=0.0)
    tile = tl.dot(tl.load(inverse + lower + SIZE), tile, input_precision=EXACT)
    tl.store(inverse + lower, tl.dot(tile, tl.load(inverse + upper), input_precision=EXACT))


@triton.jit
def _solve(
    inverse, x, x_b, x_t, x_h, r, r_b, r_t, r_h, g, g_b, g_t, g_h, segments, faults, W, U,
    length, heads, width, values, chunks, LAG: tl.constexpr, BLOCK_V: tl.constexpr,
    PER: tl.constexpr, VECTOR: tl.constexpr, C: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Store W = T x (decayed from the chunk's start) and U = T r."""
    b, h, chunk, _, number = place(chunks, heads, 1)
    row, column = tl.arange(0, C), tl.arange(0, BLOCK_K)
    t = chunk * C + row
    T = tl.load(inverse + (number * C + row)[:, None] * C + row[None, :])
    ok = present(faults, b, h, t, length, heads)
    x_rows = rows(x, x_b, x_t, x_h, b, h, t, ok, column, width, 1)
    x_rows *= from_start(g, g_b, g_t, g_h, b, h, t, chunk * C, faults, length, heads, column, width, PER, LAG, VECTOR)
    if segments is not None:
        x_rows = tl.where(carried(segments, b, t, chunk * C, length, PER)[:, None], x_rows, 0.0)
    exists = t < length
    put_rows(W, tl.dot(T, x_rows, input_precision=PRECISION), b, h, t, exists, column, length, heads, width, 1)
    for begin in range(0, values, BLOCK_V):
        v = begin + tl.arange(0, BLOCK_V)
        r_rows = rows(r, r_b, r_t, r_h, b, h, t, ok, v, values, 1)
        put_rows(U, tl.dot(T, r_rows, input_precision=PRECISION), b, h, t, exists, v, length, heads, values, 1)


@triton.jit
def carried(segments, b, t, first, length, PER: tl.constexpr):
    """Return which steps belong to the sequence that the step before ``first`` belongs to."""
    return segment(segments, b, t, length, PER) == segment(segments, b, first - 1, length, PER)


@triton.jit
def _pass(
    q, q_b, q_t, q_h, y, y_b, y_t, y_h, u, u_b, u_t, u_h, g, g_b, g_t, g_h, W, scores, initial, segments, faults,
    o, states, final, scale, length, heads, width, values, chunks, LAG: tl.constexpr, BLOCK_V: tl.constexpr,
    PER: tl.constexpr, VECTOR: tl.constexpr, C: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Take a block of the state's columns over all chunks; with W, u holds U and becomes u."""
    b, h, _, _, head = place(1, heads, 1)
    row, column = tl.arange(0, C), tl.arange(0, BLOCK_K)
    v = tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)
    corner = column[:, None] * values + v[None, :]
    exists = (column < width)[:, None] & (v < values)[None, :]
    S = tl.zeros([BLOCK_K, BLOCK_V], dtype=tl.float32)
    if initial is not None:
        S = tl.load(initial + head * width * values + corner, mask=exists, other=0.0)
    spoilt = tl.full([], 0, tl.int32)  # whether what a fault reached is part of the state
    if faults is not None:
        numbers = S - S == 0
        spoilt = tl.max(tl.max(tl.where(numbers, 0, 1), 1), 0)
        S = tl.where(numbers, S, 0.0)
    for chunk in range(chunks):
        number = head * chunks + chunk
        if states is not None:
            tl.store(states + number * width * values + corner, S, mask=exists)
        t = (chunk * C + row).to(tl.int64)
        ok = present(faults, b, h, t, length, heads)
        kept = ok
        if segments is not None:
            kept = carried(segments, b, t, chunk * C, length, PER)
        u_rows = rows(u, u_b, u_t, u_h, b, h, t, ok, v, values, 1)
        if W is not None:
            at = (b * length * heads + h) * width
            w_rows = rows(W + at, 0, heads * width, 0, b, h, t, ok, column, width, 1)
            u_rows += tl.dot(w_rows, S, input_precision=PRECISION)
            put_rows(u, u_rows, b, h, t, t < length, v, length, heads, values, 1)
        if o is not None:
            q_rows = rows(q, q_b, q_t, q_h, b, h, t, t < length, column, width, PER)
            q_rows *= from_start(
                g, g_b, g_t, g_h, b, h, t, chunk * C, faults, length, heads, column, width, PER, LAG, VECTOR
            )
            found = tl.dot(q_rows, S, input_precision=PRECISION)
            if segments is not None:
                found = tl.where(kept[:, None], found, 0.0)
            square = (number * C + row)[:, None] * C + row[None, :]
            inside = (row[:, None] >= row[None, :]) & (t < length)[:, None]
            P = tl.load(scores + square, mask=inside, other=0.0)
            found += tl.dot(P, u_rows, input_precision=PRECISION)
            if faults is not None:
                ours = segment(segments, b, t, length, PER)
                reached = (
                    (ours[:, None] == ours[None, :]) & (row[:, None] >= row[None, :]) & ((t < length) & ~ok)[None, :]
                )
                reached = (tl.max(reached.to(tl.int32), 1) | (kept.to(tl.int32) * spoilt)) != 0
                found = tl.where(reached[:, None], float("nan"), found)
            put_rows(o, found * scale, b, h, t, t < length, v, length, heads, values, PER)
        last = chunk * C + C - 1
        y_rows = rows(y, y_b, y_t, y_h, b, h, t, ok, column, width, 1)
        y_rows *= to_end(g, g_b, g_t, g_h, b, h, t, last, faults, length, heads, column, width, PER, VECTOR)
        decay = total(g, g_b, g_t, g_h, b, h, t, faults, length, heads, column, width, PER, VECTOR)
        S *= decay[:, None] if VECTOR else decay
        if segments is not None:
            ours, theirs = segment(segments, b, t, length, PER), segment(segments, b, last + t * 0, length, PER)
            y_rows = tl.where((ours == theirs)[:, None], y_rows, 0.0)
            passes = tl.max(tl.where(kept, 0, 1), 0) == 0
            S = tl.where(passes, S, 0.0)
            if faults is not None:
                new = tl.max(tl.where((ours == theirs) & (t < length) & ~ok, 1, 0), 0)
                spoilt = tl.where(passes, spoilt | new, new)
        S += tl.dot(tl.trans(y_rows), u_rows, input_precision=PRECISION)
    if final is not None:
        if faults is not None:
            S = tl.where(spoilt != 0, float("nan"), S)
        tl.store(final + head * width * values + corner, S, mask=exists)


@dataclass(frozen=True)
class Pieces:
    """What the chunks of a recurrence are made of.

    Args:
        P: How much q reads of what each earlier step wrote, for each chunk.
        T: Inverse of the system that the steps' reads make, or None where they read nothing.
        W: (B, L n, H, K) or None.
        U: (B, L n, H, V) or None; the pass over the chunks turns it into u.
        faults: (B, L n, H) bool or None.
        A: How much x reads of what each earlier step wrote, or None.
    """

    P: Tensor
    T: Tensor | None
    W: Tensor | None
    U: Tensor | None
    faults: Tensor | None
    A: Tensor | None


def _inverse(this: Recurrence, A: Tensor) -> Tensor:
    """Return (I - A)^-1 of each chunk, A strictly lower triangular."""
    steps, C, number = this.y.shape[1], this.chunk, this.heads * this.chunks
    T = torch.zeros_like(A)
    _invert[(number,)](A, T, steps, this.chunks, C)
    size = 16
    while size < C:
        _join[(number * (C // (2 * size)),)](A, T, steps, this.chunks, size, C, EXACT)
        size *= 2
    return T


def pieces(this: Recurrence) -> Pieces:
    """Compute what the chunks of a recurrence are made of, all chunks in parallel."""
    (batch, steps, heads, width), values = this.y.shape, this.r.shape[3]
    C, sub = this.chunk, SUB if this.vector else this.chunk
    faults = this.faults()

    def scores(z: Tensor, lag: int, per: int, bonus: Tensor | None) -> Tensor:
        out = this.per_chunk(C, C)
        _scores[(this.heads * this.chunks * (C // sub),)](
            *sequence(z), *sequence(this.y), *sequence(this.g), bonus, this.reset, faults, out,
            steps, heads, width, this.chunks, **this.options(this.vector, Z_PER=per, LAG=lag, SUB=sub, SLICE=SLICE),
        )  # fmt: skip
        return out

    with on_device(this.q):
        P = scores(this.q, this.lag_q, this.per_token, this.bonus)
        if this.x is None:
            return Pieces(P, None, None, None, faults, None)
        A = scores(this.x, this.lag_x, 1, None)
        T = _inverse(this, A)
        W, U = this.fresh(batch, steps, heads, width), this.fresh(batch, steps, heads, values)
        _solve[(this.heads * this.chunks,)](
            T, *sequence(this.x), *sequence(this.r), *sequence(this.g), this.reset, faults, W, U,
            steps, heads, width, values, this.chunks, **this.options(LAG=this.lag_x, BLOCK_V=this.block_v),
        )  # fmt: skip
    return Pieces(P, T, W, U, faults, A)


def over_chunks(this: Recurrence, parts: Pieces, o: Tensor | None, states: Tensor | None, final: Tensor | None) -> None:
    """Take the state over the chunks; write what is wanted of o, the states before each chunk, and the last state."""
    steps, heads, values = this.y.shape[1], this.q.shape[2], this.r.shape[3]
    with on_device(this.q):
        _pass[(this.heads, this.column_blocks)](
            *sequence(this.q), *sequence(this.y), *sequence(this.r if parts.U is None else parts.U),
            *sequence(this.g), parts.W, parts.P, this.initial, this.reset, parts.faults, o, states, final,
            this.scale, steps, heads, this.q.shape[3], values, this.chunks,
            **this.options(LAG=this.lag_q, BLOCK_V=this.block_v),
        )  # fmt: skip


def forward(recurrence: Recurrence) -> tuple[Tensor, Tensor]:
    """Return o, (B, L, H, V) in q's dtype, and the last state, (B, H, K, V) float32."""
    this = recurrence.prepared()
    batch, length, heads, width = this.q.shape
    o = this.q.new_empty((batch, length, heads, this.r.shape[3]))
    final = this.fresh(batch, heads, width, this.r.shape[3])
    if final.numel():
        over_chunks(this, pieces(this), o, None, final)
    return o, final
