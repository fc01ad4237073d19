"""newton_scan's Triton form: a program takes some channels of one batch entry through time, their state in registers.

A channel's step needs nothing of its neighbours, so that one launch runs all of them side by side without a barrier.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..cell_scan.triton_cells import tanh
from ..linear_scan.triton import refuses
from ..matrix_state.triton_tiles import on_device
from ..selective_scan.cpu import rows, side_by_side
from ..selective_scan.triton import logistic

__all__ = ["backward", "forward", "refuses"]

CHANNELS = 32  # one warp, a channel in each thread


@triton.jit
def _row(pointer, i, channels, c, mask, STATE: tl.constexpr):
    return tl.load(pointer + i * channels + c, mask=mask, other=0.0).to(STATE)


@triton.jit
def _parameters(r, bias, channels, c, mask, LSTM: tl.constexpr, STATE: tl.constexpr):
    """Return the three gates' weights, the two peepholes (0 for the GRU) and the three biases."""
    zero = tl.zeros_like(c).to(STATE)
    weights = (
        _row(r, 0, channels, c, mask, STATE),
        _row(r, 1, channels, c, mask, STATE),
        _row(r, 2, channels, c, mask, STATE),
        _row(r, 3, channels, c, mask, STATE) if LSTM else zero,
        _row(r, 4, channels, c, mask, STATE) if LSTM else zero,
    )
    biases = (zero, zero, zero)
    if bias is not None:
        biases = (
            _row(bias, 0, channels, c, mask, STATE),
            _row(bias, 1, channels, c, mask, STATE),
            _row(bias, 2, channels, c, mask, STATE),
        )
    return weights, biases


@triton.jit
def _gates(wx, bias, channels, c, mask, STATE: tl.constexpr):
    """Return one step's three pre-activations from the input."""
    return (
        _row(wx, 0, channels, c, mask, STATE) + bias[0],
        _row(wx, 1, channels, c, mask, STATE) + bias[1],
        _row(wx, 2, channels, c, mask, STATE) + bias[2],
    )


@triton.jit
def _states(pointer, channels, c, mask, LSTM: tl.constexpr, STATE: tl.constexpr):
    """Return h and the LSTM's c; for the GRU a zero in its place."""
    h = _row(pointer, 0, channels, c, mask, STATE)
    return h, (_row(pointer, 1, channels, c, mask, STATE) if LSTM else tl.zeros_like(h))


@triton.jit
def _put(pointer, channels, c, mask, h, cell, LSTM: tl.constexpr):
    tl.store(pointer + c, h, mask=mask)
    if LSTM:
        tl.store(pointer + channels + c, cell, mask=mask)


@triton.jit
def _restart(reset, at, h, cell):
    """Return the state that a step starts from, or its gradient: zero where a sequence begins."""
    if reset is not None:
        starts = tl.load(reset + at) != 0
        h = tl.where(starts, 0.0, h)
        cell = tl.where(starts, 0.0, cell)
    return h, cell


@triton.jit
def _activate(a, r, h, cell, LSTM: tl.constexpr):
    """Return the state after a step, and its gates: z, q, n of the GRU, f, g, o of the LSTM."""
    first = logistic(a[0] + r[0] * h + r[3] * cell)
    if LSTM:
        g = tanh(a[1] + r[1] * h)
        cell = g + first * (cell - g)
        o = logistic(a[2] + r[2] * h + r[4] * cell)
        return o * tanh(cell), cell, first, g, o
    else:
        q = logistic(a[1] + r[1] * h)
        n = tanh(a[2] + r[2] * (q * h))
        return h + first * (n - h), cell, first, q, n


@triton.jit
def _forward(
    wx, wx_batch, wx_step, r, bias, initial, reset, y, final, states, length, channels,
    LSTM: tl.constexpr, STATE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(channels, BLOCK)
    c = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    mask, b = c < channels, (tl.program_id(0) // blocks).to(tl.int64)
    COUNT: tl.constexpr = 2 if LSTM else 1
    weights, biases = _parameters(r, bias, channels, c, mask, LSTM, STATE)
    h, cell = _states(initial + b * COUNT * channels, channels, c, mask, LSTM, STATE)
    for t in range(length):
        at = b * length + t
        h, cell = _restart(reset, at, h, cell)
        a = _gates(wx + b * wx_batch + (0 * b + t) * wx_step, biases, channels, c, mask, STATE)
        h, cell, _, _, _ = _activate(a, weights, h, cell, LSTM)
        tl.store(y + at * channels + c, h, mask=mask)
        if states is not None:
            _put(states + at * COUNT * channels, channels, c, mask, h, cell, LSTM)
    _put(final + b * COUNT * channels, channels, c, mask, h, cell, LSTM)


@triton.jit
def _pull(gates, r, h, cell, after, gh, gc, LSTM: tl.constexpr):
    """Return the gradients of the three pre-activations and of the state before, from those of the state after."""
    if LSTM:
        f, g, o = gates
        top = tanh(after)
        d2 = gh * top * o * (1.0 - o)
        through = gc + gh * o * (1.0 - top * top) + d2 * r[4]
        d0 = through * (cell - g) * f * (1.0 - f)
        d1 = through * (1.0 - f) * (1.0 - g * g)
        return d0, d1, d2, d0 * r[0] + d1 * r[1] + d2 * r[2], through * f + d0 * r[3]
    else:
        z, q, n = gates
        d0 = gh * (n - h) * z * (1.0 - z)
        d2 = gh * z * (1.0 - n * n)
        d1 = d2 * r[2] * h * q * (1.0 - q)
        return d0, d1, d2, gh * (1.0 - z) + d0 * r[0] + d1 * r[1] + d2 * r[2] * q, gc


@triton.jit
def _backward(
    wx, wx_batch, wx_step, r, bias, initial, reset, states, dy, dy_batch, dy_step, dfinal, dwx, dr, dinitial,
    length, channels, LSTM: tl.constexpr, STATE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(channels, BLOCK)
    c = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    mask, b = c < channels, (tl.program_id(0) // blocks).to(tl.int64)
    COUNT: tl.constexpr = 2 if LSTM else 1
    weights, biases = _parameters(r, bias, channels, c, mask, LSTM, STATE)
    gh = tl.zeros([BLOCK], dtype=STATE)
    gc, dr0, dr1, dr2, dr3, dr4 = gh, gh, gh, gh, gh, gh
    if dfinal is not None:
        gh, gc = _states(dfinal + b * COUNT * channels, channels, c, mask, LSTM, STATE)
    for i in range(length):
        t = length - 1 - i
        at = b * length + t
        before = states + (at - 1) * COUNT * channels
        if t == 0:
            before = initial + b * COUNT * channels
        h, cell = _states(before, channels, c, mask, LSTM, STATE)
        h, cell = _restart(reset, at, h, cell)
        a = _gates(wx + b * wx_batch + (0 * b + t) * wx_step, biases, channels, c, mask, STATE)
        _, after, first, second, third = _activate(a, weights, h, cell, LSTM)
        if dy is not None:
            gh += tl.load(dy + b * dy_batch + (0 * b + t) * dy_step + c, mask=mask, other=0.0).to(STATE)
        d0, d1, d2, gh, gc = _pull((first, second, third), weights, h, cell, after, gh, gc, LSTM)
        dr0 += d0 * h
        dr1 += d1 * h
        dr2 += d2 * h if LSTM else d2 * (second * h)
        dr3 += d0 * cell
        dr4 += d2 * after
        tl.store(dwx + at * 3 * channels + c, d0, mask=mask)
        tl.store(dwx + (at * 3 + 1) * channels + c, d1, mask=mask)
        tl.store(dwx + (at * 3 + 2) * channels + c, d2, mask=mask)
        gh, gc = _restart(reset, at, gh, gc)
    _put(dinitial + b * COUNT * channels, channels, c, mask, gh, gc, LSTM)
    own = dr + b * (COUNT * 2 + 1) * channels + c
    tl.store(own, dr0, mask=mask)
    tl.store(own + channels, dr1, mask=mask)
    tl.store(own + 2 * channels, dr2, mask=mask)
    if LSTM:
        tl.store(own + 3 * channels, dr3, mask=mask)
        tl.store(own + 4 * channels, dr4, mask=mask)


def _options(wx: Tensor, cell: str) -> tuple[tuple[int], dict[str, object]]:
    """Return the grid and what a kernel is compiled for."""
    state = tl.float64 if wx.dtype == torch.float64 else tl.float32
    grid = (wx.shape[0] * triton.cdiv(wx.shape[3], CHANNELS),)
    return grid, {"LSTM": cell == "lstm", "STATE": state, "BLOCK": CHANNELS, "num_warps": 1}


def _sequence(x: Tensor | None) -> tuple[Tensor | None, int, int]:
    x = side_by_side(x)
    return (x, *rows(x)[1:])


def _packed(*tensors: Tensor | None) -> list[Tensor | None]:
    return [x if x is None else x.contiguous() for x in tensors]


def forward(
    wx: Tensor,
    r: Tensor,
    bias: Tensor | None,
    initial: Tensor,
    reset: Tensor | None,
    cell: str,
    tol: float,
    max_iterations: int,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute y, the final state and, where ``save``, all states; exact, whatever ``tol``."""
    batch, length, _, channels = wx.shape
    y, final = wx.new_empty((batch, length, channels)), initial.new_empty(initial.shape)
    states = initial.new_empty((batch, length if save else 0, *initial.shape[1:]))
    if wx.numel():
        grid, options = _options(wx, cell)
        with on_device(wx):
            _forward[grid](
                *_sequence(wx), *_packed(r, bias, initial, reset), y, final, states if save else None, length, channels,
                **options,
            )  # fmt: skip
    return y, final, states


def backward(
    wx: Tensor,
    r: Tensor,
    bias: Tensor | None,
    initial: Tensor,
    reset: Tensor | None,
    cell: str,
    states: Tensor,
    dy: Tensor | None,
    dfinal: Tensor | None,
) -> tuple[Tensor, ...]:
    """Compute the gradients of wx, r, bias and the initial state in one pass back."""
    batch, length, _, channels = wx.shape
    dwx, dinitial = initial.new_empty(wx.shape), initial.new_zeros(initial.shape)
    dr = initial.new_zeros((batch, *r.shape))
    if wx.numel():
        grid, options = _options(wx, cell)
        with on_device(wx):
            _backward[grid](
                *_sequence(wx), *_packed(r, bias, initial, reset, states), *_sequence(dy), *_packed(dfinal), dwx, dr,
                dinitial, length, channels, **options,
            )  # fmt: skip
    dbias = r.new_empty(0) if bias is None else dwx.sum((0, 1)).to(bias.dtype)
    return dwx.to(wx.dtype), dr.sum(0).to(r.dtype), dbias, dinitial
