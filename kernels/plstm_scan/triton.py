"""plstm_scan's Triton form on a grid: a program takes some columns of a head's values from node to node.

The state that goes along a row stays in registers; those that go down wait in memory, one for each column of the grid.
Programs share nothing: what is summed over the values' columns is written once for each program and added up after.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from ..checks import state_dtype
from ..matrix_state.triton_tiles import on_device, refuses
from .bands import BAND, bands
from .walk import Call

__all__ = ["backward", "forward", "refuses"]

TILE = 2048  # numbers of a state that a program holds


@triton.jit
def _node(b, h, i, j, rows, columns, heads, FLIP_ROWS: tl.constexpr, FLIP_COLUMNS: tl.constexpr):
    """Return the number of the j-th node of the i-th row that is walked."""
    x = rows - 1 - i if FLIP_ROWS else i
    y = columns - 1 - j if FLIP_COLUMNS else j
    return ((b * rows + x) * columns + y) * heads + h


@triton.jit
def _edge(b, h, i, count, heads, FLIP: tl.constexpr):
    """Return the number of the i-th edge into or out of a side of the grid."""
    return (b * count + (count - 1 - i if FLIP else i)) * heads + h


@triton.jit
def _pair(pointer, n):
    return tl.load(pointer + 2 * n).to(tl.float32), tl.load(pointer + 2 * n + 1).to(tl.float32)


@triton.jit
def _passed(source, transition, n, k, v, along, down):
    """Return what a node sends along its row and down its column."""
    to_row, to_column = _pair(source, n)
    row_row, row_column = _pair(transition, 2 * n)
    column_row, column_column = _pair(transition, 2 * n + 1)
    write = k[:, None] * v[None, :]
    return (
        row_row * along + row_column * down + to_row * write,
        column_row * along + column_column * down + to_column * write,
    )


@triton.jit
def _forward(
    q, k, v, source, transition, mark, direct, left, top, o, right, bottom, before, waiting,
    rows, columns, heads, keys, values, scale,
    BAND: tl.constexpr, FLIP_ROWS: tl.constexpr, FLIP_COLUMNS: tl.constexpr, K: tl.constexpr, V: tl.constexpr,
):  # fmt: skip
    b, h = (tl.program_id(0) // heads).to(tl.int64), tl.program_id(0) % heads
    row, column = tl.arange(0, K), tl.program_id(1) * V + tl.arange(0, V)
    key, value = row < keys, column < values
    mask = key[:, None] & value[None, :]
    tile, size = row[:, None] * values + column[None, :], keys * values
    own = waiting + (b * heads + h) * columns * size + tile
    for j in range(columns):
        entering = tl.zeros([K, V], dtype=tl.float32)
        if top is not None:
            entering = tl.load(top + _edge(b, h, j, columns, heads, FLIP_COLUMNS) * size + tile, mask=mask, other=0.0)
        tl.store(own + j * size, entering, mask=mask)
    for i in range(rows):
        tl.debug_barrier()
        if before is not None:  # noqa: SIM102 - a compiled kernel knows the one, not the other
            if i % BAND == 0:
                first = before + (b * tl.cdiv(rows, BAND) + i // BAND) * columns * heads * size + h * size + tile
                for j in range(columns):
                    tl.store(first + j * heads * size, tl.load(own + j * size, mask=mask, other=0.0), mask=mask)
        along = tl.zeros([K, V], dtype=tl.float32)
        if left is not None:
            along = tl.load(left + _edge(b, h, i, rows, heads, FLIP_ROWS) * size + tile, mask=mask, other=0.0)
        for j in range(columns):
            n = _node(b, h, i, j, rows, columns, heads, FLIP_ROWS, FLIP_COLUMNS)
            down = tl.load(own + j * size, mask=mask, other=0.0)
            q_n = tl.load(q + n * keys + row, mask=key, other=0.0).to(tl.float32)
            k_n = tl.load(k + n * keys + row, mask=key, other=0.0).to(tl.float32)
            v_n = tl.load(v + n * values + column, mask=value, other=0.0).to(tl.float32)
            of_row, of_column = _pair(mark, n)
            seen = tl.load(direct + n).to(tl.float32) * tl.sum(q_n * k_n, 0)
            read = tl.sum((of_row * along + of_column * down) * q_n[:, None], 0) + seen * v_n
            tl.store(o + n * values + column, scale * read, mask=value)
            along, down = _passed(source, transition, n, k_n, v_n, along, down)
            tl.store(own + j * size, down, mask=mask)
        tl.store(right + _edge(b, h, i, rows, heads, FLIP_ROWS) * size + tile, along, mask=mask)
    tl.debug_barrier()
    for j in range(columns):
        to = bottom + _edge(b, h, j, columns, heads, FLIP_COLUMNS) * size + tile
        tl.store(to, tl.load(own + j * size, mask=mask, other=0.0), mask=mask)


@triton.jit
def _recompute_row(
    k, v, source, transition, left, lefts, downs, b, h, i, rows, columns, heads, keys, values, row, column,
    FLIP_ROWS: tl.constexpr, FLIP_COLUMNS: tl.constexpr,
):  # fmt: skip
    """Write the states that enter the nodes of a row along it, and those down the columns that enter the next row."""
    key, value = row < keys, column < values
    mask = key[:, None] & value[None, :]
    tile, size = row[:, None] * values + column[None, :], keys * values
    along = tl.zeros(tile.shape, dtype=tl.float32)
    if left is not None:
        along = tl.load(left + _edge(b, h, i, rows, heads, FLIP_ROWS) * size + tile, mask=mask, other=0.0)
    for j in range(columns):
        n = _node(b, h, i, j, rows, columns, heads, FLIP_ROWS, FLIP_COLUMNS)
        k_n = tl.load(k + n * keys + row, mask=key, other=0.0).to(tl.float32)
        v_n = tl.load(v + n * values + column, mask=value, other=0.0).to(tl.float32)
        tl.store(lefts + j * size, along, mask=mask)
        down = tl.load(downs + j * size, mask=mask, other=0.0)
        along, down = _passed(source, transition, n, k_n, v_n, along, down)
        tl.store(downs + (columns + j) * size, down, mask=mask)


@triton.jit
def _backward(
    q, k, v, source, transition, mark, direct, left, before, do, dright, dbottom, states, waiting,
    dq, dk, dv, dsource, dtransition, dmark, ddirect, dleft, dtop,
    nodes, rows, columns, heads, keys, values, scale,
    BAND: tl.constexpr, FLIP_ROWS: tl.constexpr, FLIP_COLUMNS: tl.constexpr, K: tl.constexpr, V: tl.constexpr,
):  # fmt: skip
    b, h = (tl.program_id(0) // heads).to(tl.int64), tl.program_id(0) % heads
    row, column = tl.arange(0, K), tl.program_id(1) * V + tl.arange(0, V)
    key, value = row < keys, column < values
    mask = key[:, None] & value[None, :]
    tile, size = row[:, None] * values + column[None, :], keys * values
    part = tl.program_id(1) * nodes  # where this program's share of the sums over the values begins, in nodes
    own = waiting + (b * heads + h) * columns * size + tile
    # Of a band: the states into each node along its row, then those down its column with one row more.
    lefts = states + (b * heads + h) * (2 * BAND + 1) * columns * size + tile
    downs = lefts + BAND * columns * size
    for j in range(columns):
        entering = tl.zeros([K, V], dtype=tl.float32)
        if dbottom is not None:
            entering = tl.load(
                dbottom + _edge(b, h, j, columns, heads, FLIP_COLUMNS) * size + tile, mask=mask, other=0.0
            )
        tl.store(own + j * size, entering, mask=mask)
    for behind in range(tl.cdiv(rows, BAND)):
        band = tl.cdiv(rows, BAND) - 1 - behind
        count = tl.minimum(BAND, rows - band * BAND)
        first = before + (b * tl.cdiv(rows, BAND) + band) * columns * heads * size + h * size + tile
        tl.debug_barrier()
        for j in range(columns):
            tl.store(downs + j * size, tl.load(first + j * heads * size, mask=mask, other=0.0), mask=mask)
        for r in range(count):
            tl.debug_barrier()
            _recompute_row(
                k, v, source, transition, left, lefts + r * columns * size, downs + r * columns * size, b, h,
                band * BAND + r, rows, columns, heads, keys, values, row, column, FLIP_ROWS, FLIP_COLUMNS,
            )  # fmt: skip
        tl.debug_barrier()
        for up in range(count):
            r = count - 1 - up
            i = band * BAND + r
            dalong = tl.zeros([K, V], dtype=tl.float32)
            if dright is not None:
                dalong = tl.load(dright + _edge(b, h, i, rows, heads, FLIP_ROWS) * size + tile, mask=mask, other=0.0)
            for back in range(columns):
                j = columns - 1 - back
                n = _node(b, h, i, j, rows, columns, heads, FLIP_ROWS, FLIP_COLUMNS)
                place = (r * columns + j) * size
                along = tl.load(lefts + place, mask=mask, other=0.0)
                down = tl.load(downs + place, mask=mask, other=0.0)
                ddown = tl.load(own + j * size, mask=mask, other=0.0)
                q_n = tl.load(q + n * keys + row, mask=key, other=0.0).to(tl.float32)
                k_n = tl.load(k + n * keys + row, mask=key, other=0.0).to(tl.float32)
                v_n = tl.load(v + n * values + column, mask=value, other=0.0).to(tl.float32)
                into = tl.zeros([V], dtype=tl.float32)
                if do is not None:
                    into = scale * tl.load(do + n * values + column, mask=value, other=0.0).to(tl.float32)
                to_row, to_column = _pair(source, n)
                row_row, row_column = _pair(transition, 2 * n)
                column_row, column_column = _pair(transition, 2 * n + 1)
                of_row, of_column = _pair(mark, n)
                through = tl.load(direct + n).to(tl.float32)
                seen, met = tl.sum(q_n * k_n, 0), tl.sum(v_n * into, 0)
                at = part + n
                tl.store(dtransition + 4 * at, tl.sum(dalong * along))
                tl.store(dtransition + 4 * at + 1, tl.sum(dalong * down))
                tl.store(dtransition + 4 * at + 2, tl.sum(ddown * along))
                tl.store(dtransition + 4 * at + 3, tl.sum(ddown * down))
                of_alongs = tl.sum(dalong * k_n[:, None], 0)
                of_downs = tl.sum(ddown * k_n[:, None], 0)
                tl.store(dsource + 2 * at, tl.sum(of_alongs * v_n, 0))
                tl.store(dsource + 2 * at + 1, tl.sum(of_downs * v_n, 0))
                tl.store(dmark + 2 * at, tl.sum(tl.sum(along * q_n[:, None], 0) * into, 0))
                tl.store(dmark + 2 * at + 1, tl.sum(tl.sum(down * q_n[:, None], 0) * into, 0))
                tl.store(ddirect + at, seen * met)
                dq_n = tl.sum((of_row * along + of_column * down) * into[None, :], 1) + through * met * k_n
                dk_n = tl.sum((to_row * dalong + to_column * ddown) * v_n[None, :], 1) + through * met * q_n
                tl.store(dq + at * keys + row, dq_n, mask=key)
                tl.store(dk + at * keys + row, dk_n, mask=key)
                dv_n = to_row * of_alongs + to_column * of_downs + through * seen * into
                tl.store(dv + n * values + column, dv_n, mask=value)
                read = q_n[:, None] * into[None, :]
                back_along = row_row * dalong + column_row * ddown + of_row * read
                ddown = row_column * dalong + column_column * ddown + of_column * read
                dalong = back_along
                tl.store(own + j * size, ddown, mask=mask)
            if dleft is not None:
                tl.store(dleft + _edge(b, h, i, rows, heads, FLIP_ROWS) * size + tile, dalong, mask=mask)
            tl.debug_barrier()
    if dtop is not None:
        for j in range(columns):
            to = dtop + _edge(b, h, j, columns, heads, FLIP_COLUMNS) * size + tile
            tl.store(to, tl.load(own + j * size, mask=mask, other=0.0), mask=mask)


def _options(q: Tensor, v: Tensor, flips: tuple[bool, bool]) -> tuple[tuple[int, int], dict[str, Any]]:
    """Return the programs of a launch, and the kernels' constants."""
    keys = triton.next_power_of_2(q.shape[4])
    width = min(triton.next_power_of_2(v.shape[4]), max(8, TILE // keys))
    grid = (q.shape[0] * q.shape[3], triton.cdiv(v.shape[4], width))
    walk = dict(zip(("FLIP_ROWS", "FLIP_COLUMNS"), flips, strict=True))
    return grid, {"BAND": BAND, **walk, "K": keys, "V": width, "num_warps": 4 if keys * width >= 1024 else 1}


def _plain(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if x is None else x.contiguous() for x in tensors]


def forward(call: Call, save: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return what :func:`.cpu.forward` returns."""
    q, _, v = call.nodes[:3]
    batch, rows, columns, heads, keys = q.shape
    matrix, dtype = (heads, keys, v.shape[4]), state_dtype(q.dtype)
    o = v.new_empty(v.shape)
    right, bottom, before, waiting = (
        q.new_empty((batch, *shape, *matrix), dtype=dtype)
        for shape in ((rows,), (columns,), (bands(rows) if save else 0, columns), (columns,))
    )
    if o.numel():
        grid, options = _options(q, v, call.flips)
        with on_device(q):
            _forward[grid](
                *_plain(*call.nodes, *call.entering), o, right, bottom, before if save else None, waiting,
                *q.shape[1:], v.shape[4], call.scale, **options,
            )  # fmt: skip
    return o, right, bottom, before


def backward(call: Call, before: Tensor, into: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    """Return what :func:`.cpu.backward` returns."""
    q, k, v, *gates = call.nodes
    batch, _, columns, heads, keys = q.shape
    grid, options = _options(q, v, call.flips)
    summed = (q, k, *gates)
    shares = [q.new_empty((grid[1], *x.shape), dtype=before.dtype) for x in summed]
    dv = v.new_empty(v.shape)
    ends = [before.new_empty(0 if x is None else x.shape) for x in call.entering]
    if v.numel():
        matrix = (heads, columns, keys, v.shape[4])
        waiting, states = (before.new_empty((batch, n, *matrix)) for n in (1, 2 * BAND + 1))
        dq, dk, *dgates = shares
        with on_device(q):
            _backward[grid](
                *_plain(*call.nodes, call.entering[0], before, *into), states, waiting, dq, dk, dv, *dgates,
                *(None if x is None else end for x, end in zip(call.entering, ends, strict=True)),
                gates[-1].numel(), *q.shape[1:], v.shape[4], call.scale, **options,
            )  # fmt: skip
    dq, dk, *dgates = (share.sum(0).to(x.dtype) for share, x in zip(shares, summed, strict=True))
    return dq, dk, dv, *dgates, *ends
