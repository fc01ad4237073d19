"""cell_scan's Triton form: a program takes some batch entries of one head through time in one launch.

Up to :data:`HELD` features the head's recurrent matrix stays in registers and shared memory; beyond it is read from the
GPU's cache at each step, and what it multiplies goes through a buffer of the program's own.
"""

# A compiled kernel joins tuples by + alone, and their length is its own.
# ruff: noqa: RUF005
# mypy: disable-error-code="assignment, misc"

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..checks import state_dtype
from ..matrix_state.triton_tiles import EXACT, on_device, sequence
from ..matrix_state.triton_tiles import refuses as refuses_tensor
from .cells import find_cell
from .triton_cells import CELLS, step, step_backward

__all__ = ["CELLS", "backward", "forward", "refuses"]

ROWS = 16  # batch entries in a program: the fewest that tensor cores take
HELD = 64  # features up to which a head's matrix of all gates fits into a program
WIDEST = 256  # features up to which a step's tiles fit
STAGING = 16384  # bytes of shared memory beside a held matrix
TILE = tl.constexpr(16)  # rows of the matrix that are read at a time where it is not held: the fewest


def refuses(wx: Tensor) -> str | None:
    """Return why the Triton kernels cannot serve the gates' inputs, or None."""
    if wx.dim() == 5 and wx.shape[4] > WIDEST:
        return f"it serves heads of at most {WIDEST} features, not of {wx.shape[4]}; 'chunked' serves any width"
    return refuses_tensor(wx)


@triton.jit
def _tiles(pointer, stride, at, mask, COUNT: tl.constexpr, OTHER: tl.constexpr):
    """Return COUNT tiles that lie a stride apart."""
    found = ()
    for i in tl.static_range(COUNT):
        found = found + (tl.load(pointer + i * stride + at, mask=mask, other=OTHER).to(tl.float32),)
    return found


@triton.jit
def _put(pointer, stride, at, mask, tiles, FIRST: tl.constexpr, COUNT: tl.constexpr):
    """Store COUNT of the tiles, from the FIRST on, a stride apart."""
    for i in tl.static_range(COUNT):
        tl.store(pointer + i * stride + at, tiles[FIRST + i], mask=mask)


@triton.jit
def _restarted(states, starts, COUNT: tl.constexpr):
    """Return the states, or their gradients, with zeros in the rows that start anew."""
    found = ()
    for i in tl.static_range(COUNT):
        found = found + (tl.where(starts[:, None], 0.0, states[i]),)
    return found


@triton.jit
def _starts(reset, row, length, t, mask):
    at = 0 * row + t
    return tl.load(reset + row * length + at, mask=mask & (at >= 0) & (at < length), other=0) != 0


@triton.jit
def _place(batch, size, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Return a program's head, its batch entries, the columns, and the masks of those that exist."""
    blocks = tl.cdiv(batch, ROWS)
    head = (tl.program_id(0) // blocks).to(tl.int64)
    row = (tl.program_id(0) % blocks).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    return head, row, column, row < batch, (row < batch)[:, None] & (column < size)[None, :]


@triton.jit
def _biases(bias, h, size, column, ROWS: tl.constexpr, GATES: tl.constexpr):
    """Return what each gate's product begins with."""
    found = ()
    for g in tl.static_range(GATES):
        value = tl.zeros(column.shape, dtype=tl.float32)
        if bias is not None:
            at = (h * GATES + g) * size + column
            value = tl.load(bias + at, mask=column < size, other=0.0).to(tl.float32)
        found = found + (tl.zeros([ROWS, 1], dtype=tl.float32) + value[None, :],)
    return found


@triton.jit
def _forward(
    wx, wx_b, wx_t, wx_h, wx_g, weights, bias, initial, reset, y, final, trace, buffer, batch, length, heads, size,
    CELL: tl.constexpr, GATES: tl.constexpr, STATES: tl.constexpr, PLANES: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, HOLD: tl.constexpr,
):  # fmt: skip
    h, row, column, inside, mask = _place(batch, size, ROWS, BLOCK)
    matrix = weights + h * GATES * size * size
    square = (column < size)[:, None] & (column < size)[None, :]
    at = (row * wx_b + h * wx_h)[:, None] + column[None, :]
    held, ahead, added = (), (), ()
    if HOLD:
        held = _tiles(matrix, size * size, column[:, None] * size + column[None, :], square, GATES, 0.0)
        ahead = _tiles(wx, wx_g, at, mask, GATES, 0.0)
        added = _biases(bias, h, size, column, ROWS, GATES)
    state = ((row * STATES * heads + h) * size)[:, None] + column[None, :]
    s = _tiles(initial, heads * size, state, mask, STATES, 0.0)
    starts = inside & (row < 0)
    if reset is not None:
        starts = _starts(reset, row, length, 0, inside)
    own = buffer + tl.program_id(0).to(tl.int64) * 2 * ROWS * BLOCK
    i = tl.arange(0, ROWS)
    for t in range(length):
        if reset is not None:
            s = _restarted(s, starts, STATES)
            starts = _starts(reset, row, length, t + 1, inside)
        if HOLD:
            # What the next step needs is on its way while this one is computed.
            x, ahead = (
                ahead,
                _tiles(wx + (0 * h + t + 1) * wx_t, wx_g, at, mask & (0 * row + t + 1 < length)[:, None], GATES, 0.0),
            )
            q = ()
            for g in tl.static_range(GATES):
                q = q + (tl.dot(s[0], held[g], added[g], input_precision=PRECISION),)
        else:
            # Two buffers take turns: a thread writes to one of them when none reads from it any more.
            shared = own + (t % 2) * ROWS * BLOCK
            tl.store(shared + i[:, None] * BLOCK + column[None, :], s[0])
            tl.debug_barrier()
            q = _biases(bias, h, size, column, ROWS, GATES)
            for k in range(0, BLOCK, TILE):
                among = k + tl.arange(0, TILE)
                part = tl.load(shared + i[:, None] * BLOCK + among[None, :])
                tile = (among < size)[:, None] & (column < size)[None, :]
                values = _tiles(matrix, size * size, among[:, None] * size + column[None, :], tile, GATES, 0.0)
                found = ()
                for g in tl.static_range(GATES):
                    found = found + (tl.dot(part, values[g], q[g], input_precision=PRECISION),)
                q = found
            x = _tiles(wx + (0 * h + t) * wx_t, wx_g, at, mask, GATES, 0.0)
        found = step(x, q, s, CELL)
        s = found[:STATES]
        here = (row * length + t) * heads + h
        tl.store(y + (here * size)[:, None] + column[None, :], s[0], mask=mask)
        if trace is not None:
            _put(trace, size, (here * PLANES * size)[:, None] + column[None, :], mask, found, STATES, PLANES)
    _put(final, heads * size, state, mask, s, 0, STATES)


@triton.jit
def _saved(y, trace, dy, dy_b, dy_t, dy_h, row, column, mask, t, length, heads, h, size,
           PLANES: tl.constexpr, CARRIED: tl.constexpr, READS: tl.constexpr):  # fmt: skip
    """Return what backward reads of a step: its planes, the states before it if it is not the first, h and dy."""
    here = (row * length + t) * heads + h
    mask = mask & (0 * row + t >= 0)[:, None]
    # Where there is nothing, ones: a division by zero would reach the other columns as NaN.
    kept = _tiles(trace, size, (here * PLANES * size)[:, None] + column[None, :], mask, PLANES, 1.0)
    earlier = mask & (0 * row + t > 0)[:, None]
    at = ((here - heads) * size)[:, None] + column[None, :]
    before = _tiles(y, 0, at, earlier, 1, 0.0)
    at = ((here - heads) * PLANES * size)[:, None] + column[None, :]
    before = before + _tiles(trace + CARRIED * size, size, at, earlier, READS - 1, 0.0)
    out = tl.load(y + (here * size)[:, None] + column[None, :], mask=mask, other=0.0).to(tl.float32)
    into = tl.zeros(out.shape, dtype=tl.float32)
    if dy is not None:
        at = (row * dy_b + h * dy_h + (0 * h + t) * dy_t)[:, None] + column[None, :]
        into = tl.load(dy + at, mask=mask, other=0.0).to(tl.float32)
    return kept, before, out, into


@triton.jit
def _backward(
    weights, initial, reset, y, trace, dy, dy_b, dy_t, dy_h, dfinal, dwx, dinitial, buffer, batch, length, heads, size,
    CELL: tl.constexpr, GATES: tl.constexpr, STATES: tl.constexpr, PLANES: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, HOLD: tl.constexpr, CARRIED: tl.constexpr, READS: tl.constexpr,
):  # fmt: skip
    h, row, column, inside, mask = _place(batch, size, ROWS, BLOCK)
    matrix = weights + h * GATES * size * size
    held = ()
    if HOLD:
        square = (column < size)[:, None] & (column < size)[None, :]
        held = _tiles(matrix, size * size, column[:, None] * size + column[None, :], square, GATES, 0.0)
    state = ((row * STATES * heads + h) * size)[:, None] + column[None, :]
    d = ()
    for _n in tl.static_range(STATES):
        d = d + (tl.zeros([ROWS, BLOCK], dtype=tl.float32),)
    if dfinal is not None:
        d = _tiles(dfinal, heads * size, state, mask, STATES, 0.0)
    if HOLD:
        ahead = _saved(
            y, trace, dy, dy_b, dy_t, dy_h, row, column, mask, length - 1, length, heads, h, size,
            PLANES, CARRIED, READS,
        )  # fmt: skip
    first = _tiles(initial, heads * size, state, mask, READS, 0.0)
    starts = inside & (row < 0)
    if reset is not None:
        starts = _starts(reset, row, length, length - 1, inside)
    own = buffer + tl.program_id(0).to(tl.int64) * 2 * GATES * ROWS * BLOCK
    i = tl.arange(0, ROWS)
    for r in range(length):
        t = length - 1 - r
        if HOLD:
            now, ahead = ahead, _saved(
                y, trace, dy, dy_b, dy_t, dy_h, row, column, mask, t - 1, length, heads, h, size,
                PLANES, CARRIED, READS,
            )  # fmt: skip
        else:
            now = _saved(
                y, trace, dy, dy_b, dy_t, dy_h, row, column, mask, t, length, heads, h, size, PLANES, CARRIED, READS
            )
        kept, before, out, into = now
        if t == 0:
            before = first
        if reset is not None:
            before = _restarted(before, starts, READS)
        total = (d[0] + into,) + d[1:]
        dx, dq, d = step_backward(kept, before, out, total, CELL)
        at = ((((row * length + t) * heads + h) * GATES) * size)[:, None] + column[None, :]
        _put(dwx, size, at, mask, dx, 0, GATES)
        dh = d[0]
        if HOLD:
            for g in tl.static_range(GATES):
                dh = tl.dot(dq[g], held[g], dh, input_precision=PRECISION)
        else:
            shared = own + (r % 2) * GATES * ROWS * BLOCK
            _put(shared, ROWS * BLOCK, i[:, None] * BLOCK + column[None, :], i[:, None] >= 0, dq, 0, GATES)
            tl.debug_barrier()
            for k in range(0, BLOCK, TILE):
                among = k + tl.arange(0, TILE)
                tile = (among < size)[:, None] & (column < size)[None, :]
                parts = _tiles(shared, ROWS * BLOCK, i[:, None] * BLOCK + among[None, :], i[:, None] >= 0, GATES, 0.0)
                values = _tiles(matrix, size * size, among[:, None] * size + column[None, :], tile, GATES, 0.0)
                for g in tl.static_range(GATES):
                    dh = tl.dot(parts[g], values[g], dh, input_precision=PRECISION)
        d = (dh,) + d[1:]
        if reset is not None:
            d = _restarted(d, starts, STATES)
            starts = _starts(reset, row, length, t - 1, inside)
    _put(dinitial, heads * size, state, mask, d, 0, STATES)


def _holds(wx: Tensor, block: int, copies: int) -> bool:
    """Return whether a program's shared memory takes the head's matrix of every gate and what else it needs."""
    if block > HELD or not wx.is_cuda:
        return block <= HELD
    gpu = torch.cuda.get_device_properties(wx.device)
    room = getattr(gpu, "shared_memory_per_block_optin", gpu.shared_memory_per_block)
    return 4 * copies * wx.shape[3] * block * block + STAGING <= room


def _options(wx: Tensor, cell: str) -> tuple[tuple[int], dict[str, Any]]:
    """Return the grid and what both kernels are compiled for."""
    batch, _, heads, gates, size = wx.shape
    block, known = max(16, triton.next_power_of_2(size)), find_cell(cell)
    precision = EXACT if wx.dtype == torch.float32 else "tf32"
    held = _holds(wx, block, 2 if precision == "tf32x3" else 1)
    return (heads * triton.cdiv(batch, ROWS),), {
        "CELL": cell,
        "GATES": gates,
        "STATES": len(known.states),
        "PLANES": known.planes,
        "PRECISION": precision,
        "ROWS": ROWS,
        "BLOCK": block,
        "HOLD": held,
        "num_warps": 4 if block <= 32 else 8,
        "num_stages": 1 if held else 2,
    }


def _buffer(grid: tuple[int], options: dict[str, Any], wx: Tensor, tiles: int) -> Tensor:
    """Return room for two turns of what each program multiplies by tiles of its matrix."""
    count = 0 if options["HOLD"] else grid[0] * 2 * tiles
    return wx.new_empty((count, ROWS, options["BLOCK"]), dtype=torch.float32)


def _contiguous(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    return tuple(None if x is None else x.contiguous() for x in tensors)


def forward(
    wx: Tensor, R: Tensor, bias: Tensor | None, initial: Tensor, reset: Tensor | None, cell: str, save: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute y, the final state and, with ``save``, what backward reads of each step (B, L, H, planes, D)."""
    dtype, (batch, length, heads, _, size) = state_dtype(wx.dtype), wx.shape
    y, final = wx.new_empty((batch, length, heads, size)), wx.new_empty(initial.shape, dtype=dtype)
    trace = final.new_empty((batch, length if save else 0, heads, find_cell(cell).planes, size))
    if wx.numel():
        grid, options = _options(wx, cell)
        inputs = wx if wx.stride(-1) == 1 else wx.contiguous()
        with on_device(wx):
            _forward[grid](
                inputs, *inputs.stride()[:4], *_contiguous(R.transpose(2, 3), bias, initial, reset), y, final,
                trace if save else None, _buffer(grid, options, wx, 1), batch, length, heads, size, **options,
            )  # fmt: skip
    return y, final, trace


def backward(
    R: Tensor,
    bias: Tensor | None,
    initial: Tensor,
    reset: Tensor | None,
    cell: str,
    wx: Tensor,
    y: Tensor,
    trace: Tensor,
    dy: Tensor | None,
    dfinal: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Compute the gradients of wx and of the initial state, in the state's dtype."""
    dtype, (batch, length, heads, gates, size) = state_dtype(wx.dtype), wx.shape
    dwx, dinitial = wx.new_empty(wx.shape, dtype=dtype), wx.new_empty(initial.shape, dtype=dtype)
    if wx.numel():
        grid, options = _options(wx, cell)
        carried, reads = CELLS[cell]
        into = dy if dy is None or dy.stride(-1) == 1 else dy.contiguous()
        with on_device(wx):
            _backward[grid](
                *_contiguous(R, initial, reset, y, trace), *sequence(into), *_contiguous(dfinal), dwx, dinitial,
                _buffer(grid, options, wx, gates), batch, length, heads, size,
                **options, CARRIED=carried, READS=reads,
            )  # fmt: skip
    return dwx, dinitial
