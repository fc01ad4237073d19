"""linear_scan's Triton form: a program holds a few channels, and takes time tile by tile with an associative scan."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..checks import state_dtype

TILE, CHANNELS = 64, 32  # 64 steps of 32 channels: 16 pairs (a, b) in each of 128 threads


def refuses(tensor: Tensor) -> str | None:
    """Return why the Triton kernels cannot serve ``tensor``, or None."""
    if tensor.device.type == "cuda" or (tensor.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"):
        return None
    return "it serves tensors on a GPU (on the CPU only in Triton's interpreter, TRITON_INTERPRET=1)"


# A zero decay selects instead of multiplying, so that a reset stops NaN too.
@triton.jit
def _merge(a1, b1, a2, b2):
    return a1 * a2, tl.where(a2 == 0, b2, a2 * b1 + b2)


@triton.jit
def _merge_complex(ar1, ai1, br1, bi1, ar2, ai2, br2, bi2):
    zero = (ar2 == 0) & (ai2 == 0)
    br = tl.where(zero, br2, ar2 * br1 - ai2 * bi1 + br2)
    bi = tl.where(zero, bi2, ar2 * bi1 + ai2 * br1 + bi2)
    return ar1 * ar2 - ai1 * ai2, ar1 * ai2 + ai1 * ar2, br, bi


@triton.jit
def _scan(ar, ai, br, bi, hr, hi, COMPLEX: tl.constexpr):
    """Return all states of a tile that starts from the state h."""
    if COMPLEX:
        ar, ai, br, bi = tl.associative_scan((ar, ai, br, bi), 0, _merge_complex)
        zero = (ar == 0) & (ai == 0)
        re = tl.where(zero, br, ar * hr[None, :] - ai * hi[None, :] + br)
        im = tl.where(zero, bi, ar * hi[None, :] + ai * hr[None, :] + bi)
        return re, im
    else:
        ar, br = tl.associative_scan((ar, br), 0, _merge)
        return tl.where(ar == 0, br, ar * hr[None, :] + br), bi


@triton.jit
def _load(pointer, at, mask, other: tl.constexpr, COMPLEX: tl.constexpr, STATE: tl.constexpr):
    """Return the real and the imaginary parts; ``other`` is the real part outside of the mask."""
    if COMPLEX:
        re = tl.load(pointer + at * 2, mask=mask, other=other).to(STATE)
        return re, tl.load(pointer + at * 2 + 1, mask=mask, other=0.0).to(STATE)
    else:
        re = tl.load(pointer + at, mask=mask, other=other).to(STATE)
        return re, re


@triton.jit
def _store(pointer, at, re, im, mask, COMPLEX: tl.constexpr):
    if COMPLEX:
        tl.store(pointer + at * 2, re, mask=mask)
        tl.store(pointer + at * 2 + 1, im, mask=mask)
    else:
        tl.store(pointer + at, re, mask=mask)


@triton.jit
def _row(tile, index, steps):
    return tl.sum(tl.where(steps[:, None] == index, tile, 0.0), 0)


@triton.jit
def _forward(
    a, a_batch, a_step, b, b_batch, b_step, initial, reset, y, last, length, channels,
    REVERSE: tl.constexpr, COMPLEX: tl.constexpr, STATE: tl.constexpr, TILE: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(channels, CHANNELS)
    batch = (tl.program_id(0) // blocks).to(tl.int64)
    c = (tl.program_id(0) % blocks) * CHANNELS + tl.arange(0, CHANNELS)
    c_mask = c < channels
    steps = tl.arange(0, TILE)
    hr = tl.zeros([CHANNELS], dtype=STATE)
    hi = hr
    if initial is not None:
        hr, hi = _load(initial, batch * channels + c, c_mask, 0.0, COMPLEX, STATE)
    for begin in range(0, length, TILE):
        s = begin + steps
        t = (length - 1 - s if REVERSE else s).to(tl.int64)
        s_mask = s < length
        mask = s_mask[:, None] & c_mask[None, :]
        # Beyond the end a = 1 and b = 0 hand the state on.
        ar, ai = _load(a, batch * a_batch + t[:, None] * a_step + c[None, :], mask, 1.0, COMPLEX, STATE)
        br, bi = _load(b, batch * b_batch + t[:, None] * b_step + c[None, :], mask, 0.0, COMPLEX, STATE)
        if reset is not None:
            start = tl.load(reset + batch * length + t, mask=s_mask, other=0) != 0
            ar = tl.where(start[:, None], 0.0, ar)
            ai = tl.where(start[:, None], 0.0, ai)
        yr, yi = _scan(ar, ai, br, bi, hr, hi, COMPLEX)
        _store(y, (batch * length + t[:, None]) * channels + c[None, :], yr, yi, mask, COMPLEX)
        hr, hi = _row(yr, TILE - 1, steps), _row(yi, TILE - 1, steps)
    _store(last, batch * channels + c, hr, hi, c_mask, COMPLEX)


@triton.jit
def _backward(
    a, a_batch, a_step, y, initial, reset, dy, dy_batch, dy_step, dlast, da, db, dinitial, length, channels,
    SUM: tl.constexpr, REVERSE: tl.constexpr, COMPLEX: tl.constexpr, STATE: tl.constexpr, TILE: tl.constexpr,
    CHANNELS: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(channels, CHANNELS)
    batch = (tl.program_id(0) // blocks).to(tl.int64)
    c = (tl.program_id(0) % blocks) * CHANNELS + tl.arange(0, CHANNELS)
    c_mask = c < channels
    tile = tl.arange(0, TILE)
    gr = tl.zeros([CHANNELS], dtype=STATE)
    gi = gr
    sr, si = gr, gr
    if dlast is not None:
        gr, gi = _load(dlast, batch * channels + c, c_mask, 0.0, COMPLEX, STATE)
    for begin in range(0, length, TILE):
        s = length - 1 - begin - tile  # steps, from the last taken to the first
        t = (length - 1 - s if REVERSE else s).to(tl.int64)
        later = t - 1 if REVERSE else t + 1
        sooner = t + 1 if REVERSE else t - 1
        s_mask = s >= 0
        mask = s_mask[:, None] & c_mask[None, :]
        damped = s_mask & (s < length - 1)
        ar, ai = _load(
            a, batch * a_batch + later[:, None] * a_step + c[None, :], damped[:, None] & c_mask[None, :], 1.0, COMPLEX,
            STATE,
        )  # fmt: skip
        start = s < 0
        if reset is not None:
            ends = tl.load(reset + batch * length + later, mask=damped, other=0) != 0
            ar = tl.where(ends[:, None], 0.0, ar)
            ai = tl.where(ends[:, None], 0.0, ai)
            start = tl.load(reset + batch * length + t, mask=s_mask, other=0) != 0
        br = tl.zeros([TILE, CHANNELS], dtype=STATE)
        bi = br
        if dy is not None:
            br, bi = _load(dy, batch * dy_batch + t[:, None] * dy_step + c[None, :], mask, 0.0, COMPLEX, STATE)
        if COMPLEX:
            ai = -ai
        br, bi = _scan(ar, ai, br, bi, gr, gi, COMPLEX)
        at = (batch * length + t[:, None]) * channels + c[None, :]
        _store(db, at, br, bi, mask, COMPLEX)
        before = s_mask & (s > 0)
        pr, pi = _load(
            y, (batch * length + sooner[:, None]) * channels + c[None, :], before[:, None] & c_mask[None, :], 0.0,
            COMPLEX, STATE,
        )  # fmt: skip
        if initial is not None:
            ir, ii = _load(initial, batch * channels + c, c_mask, 0.0, COMPLEX, STATE)
            pr = tl.where(s[:, None] == 0, ir[None, :], pr)
            pi = tl.where(s[:, None] == 0, ii[None, :], pi)
        dr, di = br * pr, br
        if COMPLEX:
            dr, di = br * pr + bi * pi, bi * pr - br * pi
        dr = tl.where(start[:, None], 0.0, dr)
        di = tl.where(start[:, None], 0.0, di)
        if SUM:
            sr += tl.sum(tl.where(mask, dr, 0.0), 0)
            si += tl.sum(tl.where(mask, di, 0.0), 0)
        else:
            _store(da, at, dr, di, mask, COMPLEX)
        gr, gi = _row(br, TILE - 1, tile), _row(bi, TILE - 1, tile)
    first = tl.full([], length - 1, tl.int64) if REVERSE else tl.full([], 0, tl.int64)
    ar, ai = _load(a, batch * a_batch + first * a_step + c, c_mask, 1.0, COMPLEX, STATE)
    hr, hi = ar * gr, gi
    if COMPLEX:
        hr, hi = ar * gr + ai * gi, ar * gi - ai * gr
    if reset is not None:
        started = tl.load(reset + batch * length + first) != 0
        hr = tl.where(started, 0.0, hr)
        hi = tl.where(started, 0.0, hi)
    _store(dinitial, batch * channels + c, hr, hi, c_mask, COMPLEX)
    if SUM:
        _store(da, batch * channels + c, sr, si, c_mask, COMPLEX)


def _device(tensor: Tensor) -> AbstractContextManager[None]:
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def _parts(x: Tensor | None) -> Tensor | None:
    """Return a tensor that a kernel can take: complex numbers as pairs."""
    return torch.view_as_real(x.resolve_conj()) if x is not None and x.is_complex() else x


def _rows(x: Tensor | None) -> tuple[Tensor | None, int, int]:
    """Return a sequence tensor, its channels side by side, and its strides over B and L: 0 along an axis of size 1."""
    if x is None:
        return None, 0, 0
    x = x if x.stride(2) == 1 or x.shape[2] == 1 else x.contiguous()
    batch, step = x.stride(0) if x.shape[0] > 1 else 0, x.stride(1) if x.shape[1] > 1 else 0
    return _parts(x), batch, step


def _options(x: Tensor, reverse: bool) -> tuple[tuple[int], dict[str, object]]:
    """Return the grid and what a kernel is compiled for."""
    channels = min(CHANNELS, max(4, triton.next_power_of_2(x.shape[2])))
    double = x.dtype in (torch.float64, torch.complex128)
    options = {
        "REVERSE": reverse,
        "COMPLEX": x.is_complex(),
        "STATE": tl.float64 if double else tl.float32,
        "TILE": TILE,
        "CHANNELS": channels,
    }
    return (x.shape[0] * triton.cdiv(x.shape[2], channels),), options


def linear_scan_triton(
    a: Tensor, b: Tensor, initial_state: Tensor | None, reset: Tensor | None, reverse: bool
) -> tuple[Tensor, Tensor]:
    """Compute all states; arguments and results as :func:`.reference.linear_scan_reference`."""
    batch, length, channels = b.shape
    y = torch.empty_like(b, memory_format=torch.contiguous_format)
    final = b.new_empty((batch, channels), dtype=state_dtype(b.dtype))
    if b.numel() == 0:
        return y, final
    initial = None if initial_state is None else initial_state.contiguous()
    starts = None if reset is None else reset.contiguous()
    grid, options = _options(b, reverse)
    with _device(b):
        _forward[grid](
            *_rows(a), *_rows(b), _parts(initial), starts, _parts(y), _parts(final), length, channels, **options
        )
    return y, final


def linear_scan_triton_backward(
    a: Tensor,
    y: Tensor,
    initial_state: Tensor | None,
    reset: Tensor | None,
    reverse: bool,
    dy: Tensor | None,
    dfinal: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the gradients of a, b and the initial state in one pass over reversed time; see :mod:`.adjoint`."""
    batch, length, channels = y.shape
    state = state_dtype(y.dtype)
    initial = None if initial_state is None else initial_state.contiguous()
    last = None if dfinal is None else dfinal.contiguous()
    starts = None if reset is None else reset.contiguous()
    summed = a.shape[1] == 1
    # What is summed further, over the batch, keeps the state's precision until then.
    da = y.new_empty((batch, a.shape[1], channels), dtype=y.dtype if a.shape == y.shape else state)
    db, dinitial = torch.empty_like(y), y.new_empty((batch, channels), dtype=state)
    if y.numel():
        grid, options = _options(y, reverse)
        with _device(y):
            _backward[grid](
                *_rows(a), _parts(y.contiguous()), _parts(initial), starts, *_rows(dy), _parts(last),
                _parts(da), _parts(db), _parts(dinitial), length, channels, SUM=summed, **options,
            )  # fmt: skip
    return da.sum_to_size(a.shape).to(a.dtype), db, dinitial
