"""The Triton kernels that differentiate a matrix-state recurrence; see :mod:`.triton_tiles`.

Nothing is kept from the forward pass: u and the states before the chunks are computed again. One pass over the chunks
in reversed time gives the gradients of u and of the states after the chunks; the rest takes all chunks in parallel.

A decay's gradient sums what the pairs (writing step, reading step) around it pass on. Pairs within a chunk are summed
as those read later less those written later, without the reads of a step's own write, which no decay touches.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import triton
import triton.language as tl
from torch import Tensor

from .triton_forward import SLICE, SUB, Pieces, carried, over_chunks, pieces
from .triton_tiles import (
    Recurrence,
    between,
    between_rows,
    charge,
    charges,
    decays,
    from_start,
    on_device,
    place,
    present,
    put_rows,
    rows,
    segment,
    sequence,
    span,
    to_end,
    total,
)


@triton.jit
def _reverse_pass(
    q, q_b, q_t, q_h, y, y_b, y_t, y_h, do, do_b, do_t, do_h, g, g_b, g_t, g_h, W, scores, dfinal, segments, faults,
    du, dstates, dinitial, scale, length, heads, width, values, chunks, LAG: tl.constexpr, BLOCK_V: tl.constexpr,
    PER: tl.constexpr, VECTOR: tl.constexpr, C: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Take the gradient of a block of the state's columns over all chunks, the last first."""
    b, h, _, _, head = place(1, heads, 1)
    row, column = tl.arange(0, C), tl.arange(0, BLOCK_K)
    v = tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)
    corner = column[:, None] * values + v[None, :]
    exists = (column < width)[:, None] & (v < values)[None, :]
    dS = tl.zeros([BLOCK_K, BLOCK_V], dtype=tl.float32)
    if dfinal is not None:
        dS = tl.load(dfinal + head * width * values + corner, mask=exists, other=0.0)
    for back in range(chunks):
        chunk = chunks - 1 - back
        number = head * chunks + chunk
        tl.store(dstates + number * width * values + corner, dS, mask=exists)
        t = (chunk * C + row).to(tl.int64)
        last = chunk * C + C - 1
        ok = present(faults, b, h, t, length, heads)
        kept = t >= 0
        y_rows = rows(y, y_b, y_t, y_h, b, h, t, ok, column, width, 1)
        y_rows *= to_end(g, g_b, g_t, g_h, b, h, t, last, faults, length, heads, column, width, PER, VECTOR)
        decay = total(g, g_b, g_t, g_h, b, h, t, faults, length, heads, column, width, PER, VECTOR)
        if segments is not None:
            kept = carried(segments, b, t, chunk * C, length, PER)
            ours, theirs = segment(segments, b, t, length, PER), segment(segments, b, last + t * 0, length, PER)
            y_rows = tl.where((ours == theirs)[:, None], y_rows, 0.0)
        found = tl.dot(y_rows, dS, input_precision=PRECISION)
        dS *= decay[:, None] if VECTOR else decay
        if segments is not None:
            dS = tl.where(tl.max(tl.where(kept, 0, 1), 0) == 0, dS, 0.0)
        if do is not None:
            do_rows = rows(do, do_b, do_t, do_h, b, h, t, t < length, v, values, PER) * scale
            square = (number * C + row)[:, None] * C + row[None, :]
            inside = (row[:, None] >= row[None, :]) & (t < length)[:, None]
            P = tl.load(scores + square, mask=inside, other=0.0)
            found += tl.dot(tl.trans(P), do_rows, input_precision=PRECISION)
            q_rows = rows(q, q_b, q_t, q_h, b, h, t, t < length, column, width, PER)
            q_rows *= from_start(
                g, g_b, g_t, g_h, b, h, t, chunk * C, faults, length, heads, column, width, PER, LAG, VECTOR
            )
            q_rows = tl.where(kept[:, None], q_rows, 0.0)
            dS += tl.dot(tl.trans(q_rows), do_rows, input_precision=PRECISION)
        put_rows(du, found, b, h, t, t < length, v, length, heads, values, 1)
        if W is not None:
            at = (b * length * heads + h) * width
            w_rows = rows(W + at, 0, heads * width, 0, b, h, t, ok, column, width, 1)
            dS += tl.dot(tl.trans(w_rows), found, input_precision=PRECISION)
    tl.store(dinitial + head * width * values + corner, dS, mask=exists)


@triton.jit
def _unsolve(
    inverse, du, length, heads, values, chunks, BLOCK_V: tl.constexpr,
    PER: tl.constexpr, VECTOR: tl.constexpr, C: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Turn the gradient of u = T (r + x S) into that of r + x S, in place."""
    b, h, chunk, _, number = place(chunks, heads, 1)
    row = tl.arange(0, C)
    t, v = chunk * C + row, tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)
    T = tl.load(inverse + (number * C + row)[:, None] * C + row[None, :])
    at = (b * length * heads + h) * values
    found = rows(du + at, 0, heads * values, 0, b, h, t, t < length, v, values, 1)
    found = tl.dot(tl.trans(T), found, input_precision=PRECISION)
    put_rows(du, found, b, h, t, t < length, v, length, heads, values, 1)


@triton.jit
def _score_gradients(
    left, left_b, left_t, left_h, u, u_b, u_t, u_h, segments, out, scale, length, heads, values, chunks,
    Z_PER: tl.constexpr, OWN: tl.constexpr, BLOCK_V: tl.constexpr,
    PER: tl.constexpr, VECTOR: tl.constexpr, C: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Store the gradient of a chunk's scores, left_t . u_s for s < t, and s = t where a step reads its own write."""
    b, h, chunk, _, number = place(chunks, heads, 1)
    row = tl.arange(0, C)
    t = chunk * C + row
    found = tl.zeros([C, C], dtype=tl.float32)
    for begin in range(0, values, BLOCK_V):
        v = begin + tl.arange(0, BLOCK_V)
        left_rows = rows(left, left_b, left_t, left_h, b, h, t, t < length, v, values, Z_PER)
        u_rows = rows(u, u_b, u_t, u_h, b, h, t, t < length, v, values, 1)
        found += tl.dot(left_rows, tl.trans(u_rows), input_precision=PRECISION)
    found = tl.where(row[:, None] + OWN > row[None, :], found * scale, 0.0)
    if segments is not None:
        ours = segment(segments, b, t, length, PER)
        found = tl.where(ours[:, None] == ours[None, :], found, 0.0)
    tl.store(out + (number * C + row)[:, None] * C + row[None, :], found)


@triton.jit
def _own_weight(bonus, h, column, width, LAG: tl.constexpr):
    """Return how much a step reads of what it writes itself, (columns,)."""
    if bonus is not None:
        return tl.load(bonus + h * width + column, mask=column < width, other=0.0).to(tl.float32)
    else:
        return tl.full(column.shape, 1.0 - LAG, tl.float32)


@triton.jit
def _readers(
    z, z_b, z_t, z_h, y, y_b, y_t, y_h, left, left_b, left_t, left_h, g, g_b, g_t, g_h, dscores, states, bonus,
    segments, faults, dz, e, scale, length, heads, width, values, chunks,
    Z_PER: tl.constexpr, LAG: tl.constexpr, SUB: tl.constexpr, BLOCK_V: tl.constexpr,
    PER: tl.constexpr, VECTOR: tl.constexpr, C: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Store the gradient of some columns of what reads (q or x) in a block of steps."""
    b, h, chunk, part, number = place(chunks, heads, C // SUB)
    i, column = tl.arange(0, SUB), tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    begin = chunk * C
    first = begin + part * SUB
    if first >= length:
        return
    t = first + i
    ok = present(faults, b, h, t, length, heads)
    z_rows = rows(z, z_b, z_t, z_h, b, h, t, ok, column, width, Z_PER)
    y_rows = rows(y, y_b, y_t, y_h, b, h, t, ok, column, width, 1)
    near = from_start(g, g_b, g_t, g_h, b, h, t, first, faults, length, heads, column, width, PER, LAG, VECTOR)
    far = near
    if VECTOR:
        far *= span(g, g_b, g_t, g_h, b, h, begin, first, faults, length, heads, column, width, PER, C)[None, :]
    found = tl.zeros([SUB, BLOCK_K], dtype=tl.float32)
    for left_v in range(0, values, BLOCK_V):
        v = left_v + tl.arange(0, BLOCK_V)
        left_rows = rows(left, left_b, left_t, left_h, b, h, t, t < length, v, values, Z_PER)
        corner = (number * width + column)[:, None] * values + v[None, :]
        S = tl.load(states + corner, mask=(column < width)[:, None] & (v < values)[None, :], other=0.0)
        found += tl.dot(left_rows, tl.trans(S), input_precision=PRECISION)
    found *= far * scale
    if segments is not None:
        found = tl.where(carried(segments, b, t, begin, length, PER)[:, None], found, 0.0)
    line = dscores + (number * C + part * SUB + i)[:, None] * C
    block = tl.load(line + part * SUB + i[None, :])
    own = tl.sum(tl.where(i[:, None] == i[None, :], block, 0.0), 1)
    block = tl.where(i[:, None] > i[None, :], block, 0.0)
    if VECTOR:
        row = tl.arange(0, C)
        s, s_mask = begin + row, row < part * SUB
        past = tl.load(line + row[None, :], mask=s_mask[None, :], other=0.0)
        s_mask = s_mask & present(faults, b, h, s, length, heads)
        y_past = rows(y, y_b, y_t, y_h, b, h, s, s_mask, column, width, 1)
        y_past *= to_end(g, g_b, g_t, g_h, b, h, s, first - 1, faults, length, heads, column, width, PER, VECTOR)
        found += tl.dot(past, y_past, input_precision=PRECISION) * near
        decay = between_rows(g, g_b, g_t, g_h, b, h, t, first, faults, length, heads, i, column, width, PER, LAG)
        found += tl.sum(block[:, :, None] * y_rows[None, :, :] * decay, 1)
    else:
        block *= between(g, g_b, g_t, g_h, b, h, t, first, faults, length, heads, i, PER, LAG)
        found += tl.dot(block, y_rows, input_precision=PRECISION)
    if e is not None:
        charged = ok & (t - LAG >= begin)
        charge(e, z_rows * found, b, h, t - LAG, charged, column, length, heads, width, VECTOR)
    found += own[:, None] * y_rows * _own_weight(bonus, h, column, width, LAG)[None, :]
    put_rows(dz, found, b, h, t, t < length, column, length, heads, width, Z_PER)


@triton.jit
def _writers(
    z, z_b, z_t, z_h, y, y_b, y_t, y_h, u, u_b, u_t, u_h, g, g_b, g_t, g_h, dscores, dstates, bonus,
    segments, faults, dy, e, f, length, heads, width, values, chunks,
    Z_PER: tl.constexpr, LAG: tl.constexpr, SUB: tl.constexpr, BLOCK_V: tl.constexpr,
    PER: tl.constexpr, VECTOR: tl.constexpr, C: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add to the gradient of some columns of y in a block of steps what z reads; with dstates what the chunk leaves."""
    b, h, chunk, part, number = place(chunks, heads, C // SUB)
    i, column = tl.arange(0, SUB), tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    end = chunk * C + C
    first = chunk * C + part * SUB
    if first >= length:
        return
    t = first + i
    ok = present(faults, b, h, t, length, heads)
    z_rows = rows(z, z_b, z_t, z_h, b, h, t, ok, column, width, Z_PER)
    y_rows = rows(y, y_b, y_t, y_h, b, h, t, ok, column, width, 1)
    at = dscores + (number * C + part * SUB + i)[:, None] * C + part * SUB + i[None, :]
    block = tl.load(at)
    own = tl.sum(tl.where(i[:, None] == i[None, :], block, 0.0), 1)
    block = tl.where(i[:, None] > i[None, :], block, 0.0)
    last = first + SUB - 1
    near = to_end(g, g_b, g_t, g_h, b, h, t, last, faults, length, heads, column, width, PER, VECTOR)
    if VECTOR:
        decay = between_rows(g, g_b, g_t, g_h, b, h, t, first, faults, length, heads, i, column, width, PER, LAG)
        found = tl.sum(block[:, :, None] * z_rows[:, None, :] * decay, 0)
        row = tl.arange(0, C)
        s, s_mask = chunk * C + row, row >= (part + 1) * SUB
        past = dscores + (number * C + row)[:, None] * C + part * SUB + i[None, :]
        later = tl.load(past, mask=(s_mask & (s < length))[:, None], other=0.0)
        s_mask = s_mask & present(faults, b, h, s, length, heads)
        z_later = rows(z, z_b, z_t, z_h, b, h, s, s_mask, column, width, Z_PER)
        z_later *= from_start(
            g, g_b, g_t, g_h, b, h, s, last + 1, faults, length, heads, column, width, PER, LAG, VECTOR
        )
        found += tl.dot(tl.trans(later), z_later, input_precision=PRECISION) * near
    else:
        block *= between(g, g_b, g_t, g_h, b, h, t, first, faults, length, heads, i, PER, LAG)
        found = tl.dot(tl.trans(block), z_rows, input_precision=PRECISION)
    if e is not None:
        charge(e, -y_rows * found, b, h, t, ok, column, length, heads, width, VECTOR)
    found += own[:, None] * z_rows * _own_weight(bonus, h, column, width, LAG)[None, :]
    if dstates is not None:
        left = tl.zeros([SUB, BLOCK_K], dtype=tl.float32)
        for left_v in range(0, values, BLOCK_V):
            v = left_v + tl.arange(0, BLOCK_V)
            u_rows = rows(u, u_b, u_t, u_h, b, h, t, ok, v, values, 1)
            corner = (number * width + column)[:, None] * values + v[None, :]
            dS = tl.load(dstates + corner, mask=(column < width)[:, None] & (v < values)[None, :], other=0.0)
            left += tl.dot(u_rows, tl.trans(dS), input_precision=PRECISION)
        if VECTOR:
            near *= span(g, g_b, g_t, g_h, b, h, last + 1, end, faults, length, heads, column, width, PER, C)[None, :]
        left *= near
        if segments is not None:
            theirs = segment(segments, b, end - 1 + i * 0, length, PER)
            left = tl.where((segment(segments, b, t, length, PER) == theirs)[:, None], left, 0.0)
        if f is not None:
            charge(f, y_rows * left, b, h, t, ok, column, length, heads, width, VECTOR)
        found += left
    else:
        at = (b * length * heads + h) * width
        found += rows(dy + at, 0, heads * width, 0, b, h, t, t < length, column, width, 1)
    put_rows(dy, found, b, h, t, t < length, column, length, heads, width, 1)


@triton.jit
def _decay_gradients(
    g, g_b, g_t, g_h, e, f, states, dstates, segments, faults, dg, length, heads, width, values, chunks,
    BLOCK_V: tl.constexpr, PER: tl.constexpr, VECTOR: tl.constexpr, C: tl.constexpr, BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Store the log decays' gradient: reads from each step on, writes before it, and what passes the whole chunk."""
    b, h, chunk, _, number = place(chunks, heads, 1)
    t, column = chunk * C + tl.arange(0, C), tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    through = tl.zeros([BLOCK_K], dtype=tl.float32)
    for begin in range(0, values, BLOCK_V):
        v = begin + tl.arange(0, BLOCK_V)
        corner = (number * width + column)[:, None] * values + v[None, :]
        exists = (column < width)[:, None] & (v < values)[None, :]
        S = tl.load(states + corner, mask=exists, other=0.0)
        through += tl.sum(S * tl.load(dstates + corner, mask=exists, other=0.0), 1)
    through *= total(g, g_b, g_t, g_h, b, h, t, faults, length, heads, column, width, PER, VECTOR)
    if segments is not None:
        changes = tl.max(tl.where(carried(segments, b, t, chunk * C, length, PER), 0, 1), 0)
        through = tl.where(changes == 0, through, 0.0)
    ok = present(faults, b, h, t, length, heads)
    sooner = (t > chunk * C) & (t <= length)
    each = heads if not VECTOR else heads * width
    over = h if not VECTOR else h * width
    at = b * length * each + over
    reads = charges(e + at, each, t, t < length, column, width, VECTOR)
    writes = charges(f + at, each, t - 1, sooner, column, width, VECTOR)
    found = tl.cumsum(reads, 0, reverse=True) + tl.cumsum(writes, 0)
    found += through[None, :] if VECTOR else tl.sum(through, 0)
    log = decays(g, g_b, g_t, g_h, b, h, t, ok, column, width, PER, VECTOR)
    found = tl.where(log == float("-inf"), 0.0, found)
    mask = (t < length) & (t % PER == 0)
    where = (b * (length // PER) + t // PER) * each + over
    if VECTOR:
        tl.store(dg + where[:, None] + column[None, :], found, mask=mask[:, None] & (column < width)[None, :])
    else:
        tl.store(dg + where, found, mask=mask)


@dataclass(frozen=True)
class Gradients:
    """The gradients of a :class:`.Recurrence`'s tensors, contiguous; None where the tensor is None."""

    q: Tensor
    y: Tensor
    r: Tensor
    g: Tensor | None
    x: Tensor | None
    bonus: Tensor | None
    initial: Tensor


def backward(recurrence: Recurrence, do: Tensor | None, dfinal: Tensor | None) -> Gradients:
    """Return the gradients of a recurrence's tensors; y's and x's in float32, and r's where x is given."""
    this = recurrence.prepared()
    (batch, steps, heads, width), values = this.y.shape, this.r.shape[3]
    dr = this.r.new_empty(this.r.shape) if this.x is None else this.fresh(*this.r.shape)
    found = Gradients(
        this.q.new_empty(this.q.shape),
        this.fresh(*this.y.shape),
        dr,
        None if this.g is None else this.g.new_empty(this.g.shape),
        None if this.x is None else this.fresh(*this.y.shape),
        None if this.bonus is None else this.bonus.new_zeros(this.bonus.shape),
        this.fresh(batch, heads, width, values),
    )
    if not found.initial.numel():
        return found
    do = None if do is None else do if do.stride(3) == 1 else do.contiguous()
    parts = pieces(this)
    states, dstates = this.per_chunk(width, values), this.per_chunk(width, values)
    over_chunks(this, parts, None, states, None)
    with on_device(this.q):
        _reverse_pass[(this.heads, this.column_blocks)](
            *sequence(this.q), *sequence(this.y), *sequence(do), *sequence(this.g), parts.W, parts.P,
            None if dfinal is None else dfinal.contiguous(), this.reset, parts.faults, found.r, dstates, found.initial,
            this.scale, steps, heads, width, values, this.chunks,
            **this.options(LAG=this.lag_q, BLOCK_V=this.block_v),
        )  # fmt: skip
        if parts.T is not None:
            _unsolve[(this.heads * this.chunks, this.column_blocks)](
                parts.T, found.r, steps, heads, values, this.chunks, **this.options(BLOCK_V=this.block_v)
            )
        dbonus = _in_parallel(this, parts, found, do, states, dstates)
    return found if dbonus is None else replace(found, bonus=dbonus)


def _in_parallel(
    this: Recurrence, parts: Pieces, found: Gradients, do: Tensor | None, states: Tensor, dstates: Tensor
) -> Tensor | None:
    """Fill in the gradients that take all chunks in parallel; return the bonus's."""
    (_, steps, heads, width), values = this.y.shape, this.r.shape[3]
    C, sub = this.chunk, SUB if this.vector else this.chunk
    columns = SLICE if this.vector else this.block_k
    grid = (this.heads * this.chunks * (C // sub), triton.cdiv(width, columns))
    u = sequence(this.r if parts.U is None else parts.U)
    e, f = (None if this.g is None else this.fresh(*this.y.shape[: 4 if this.vector else 3], zero=True) for _ in "ef")
    dbonus: Tensor | None = None
    left_states: Tensor | None = dstates
    # q's reads, less where nothing of o is asked for, in which case they add zero; then those of x.
    readers: list[tuple[Tensor, Tensor | None, Tensor, int, int, Tensor | None, float]] = [
        (this.q, do, found.q, this.per_token, this.lag_q, this.bonus, this.scale)
    ]
    if this.x is not None and found.x is not None:
        readers.append((this.x, found.r, found.x, 1, this.lag_x, None, 1.0))
    for z, left, dz, per, lag, bonus, scale in readers:
        left = z.new_zeros((*z.shape[:3], values)) if left is None else left
        dscores = this.per_chunk(C, C)
        _score_gradients[(this.heads * this.chunks,)](
            *sequence(left), *u, this.reset, dscores, scale, steps, heads, values, this.chunks,
            **this.options(Z_PER=per, OWN=int(z is this.q), BLOCK_V=this.block_v),
        )  # fmt: skip
        options = this.options(this.vector, Z_PER=per, LAG=lag, SUB=sub, BLOCK_V=this.block_v, BLOCK_K=columns)
        _readers[grid](
            *sequence(z), *sequence(this.y), *sequence(left), *sequence(this.g), dscores, states, bonus, this.reset,
            parts.faults, dz, e, scale, steps, heads, width, values, this.chunks, **options,
        )  # fmt: skip
        _writers[grid](
            *sequence(z), *sequence(this.y), *u, *sequence(this.g), dscores, left_states, bonus, this.reset,
            parts.faults, found.y, e, f, steps, heads, width, values, this.chunks, **options,
        )  # fmt: skip
        left_states = None
        if bonus is not None:
            own = dscores.diagonal(dim1=2, dim2=3).reshape(this.q.shape[0], heads, -1)[:, :, :steps]
            dbonus = (own.transpose(1, 2)[..., None] * z * this.y).sum((0, 1)).to(bonus.dtype)
    if found.g is not None:
        _decay_gradients[(this.heads * this.chunks, grid[1])](
            *sequence(this.g), e, f, states, dstates, this.reset, parts.faults, found.g, steps, heads, width, values,
            this.chunks, **this.options(BLOCK_V=this.block_v, BLOCK_K=columns),
        )  # fmt: skip
    return dbonus
