"""ttt_linear's Triton form: a program takes one head of one row through its mini-batches by the dual form.

The inner model's weights stay in registers. The backward program goes through the mini-batches from the last one on: it
loads the weights before each and computes it again.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..matrix_state.triton_tiles import EXACT, on_device, put_rows, refuses, rows, sequence
from .reference import places, saved_slots

__all__ = ["backward", "forward", "refuses"]


@triton.jit
def _matrix(weights, width, row, column):
    """Return weights and the bias below them."""
    mask = column < width
    tile_mask = (row < width)[:, None] & mask[None, :]
    tile = tl.load(weights + row[:, None] * width + column[None, :], mask=tile_mask, other=0.0).to(tl.float32)
    return tile, tl.load(weights + width * width + column, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _put_matrix(weights, tile, bias, width, row, column, mask):
    tl.store(weights + row[:, None] * width + column[None, :], tile, mask=(row < width)[:, None] & mask[None, :])
    tl.store(weights + width * width + column, bias, mask=mask)


@triton.jit
def _starts(reset, b, length, t):
    if reset is None:
        return t < 0
    else:
        return tl.load(reset + b * length + t) != 0


@triton.jit
def _norm(z, inside, width, epsilon):
    """Return normalised rows and the factors that did it."""
    centred = tl.where(inside[None, :], z - (tl.sum(z, 1) / width)[:, None], 0.0)
    factor = 1.0 / tl.sqrt(tl.sum(centred * centred, 1) / width + epsilon)
    return centred * factor[:, None], factor


@triton.jit
def _through_norm(gradient, x, factor, inside, width):
    """Return the gradient before a norm of a gradient after it; symmetric, so that its own gradient is itself."""
    mean, along = tl.sum(gradient, 1) / width, tl.sum(gradient * x, 1) / width
    return tl.where(inside[None, :], (gradient - mean[:, None] - along[:, None] * x) * factor[:, None], 0.0)


@triton.jit
def _work(q, k, v, eta, base, bias, read, read_bias, scale, shift, inside, i, width, epsilon, PRECISION: tl.constexpr):
    """Return what forward and backward need of a mini-batch; gradients are taken at ``base``, queries see ``read``."""
    x, by = _norm(tl.dot(k, base, input_precision=PRECISION) + bias[None, :], inside, width, epsilon)
    error = scale[None, :] * x + shift[None, :] - v + k
    gradient = _through_norm(scale[None, :] * error, x, by, inside, width)
    moves = -eta[:, None] * gradient
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) + 1.0
    scores = tl.where(i[:, None] >= i[None, :], scores, 0.0)
    y = tl.dot(q, read, input_precision=PRECISION) + read_bias[None, :]
    found, found_by = _norm(y + tl.dot(scores, moves, input_precision=PRECISION), inside, width, epsilon)
    return x, by, error, gradient, moves, scores, found, found_by


@triton.jit
def _forward(
    q, q_b, q_t, q_h, k, k_b, k_t, k_h, v, v_b, v_t, v_h, eta, eta_b, eta_t, eta_h,
    weights, ln_weight, ln_bias, initial, place, reset, o, final, before, length, heads, width, slots, epsilon,
    MINI_BATCH: tl.constexpr, T: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    b, h = (tl.program_id(0) // heads).to(tl.int64), tl.program_id(0) % heads
    i, row, column = tl.arange(0, T), tl.arange(0, BLOCK), tl.arange(0, BLOCK)
    inside, size = column < width, (width + 1) * width
    scale = tl.load(ln_weight + h * width + column, mask=inside, other=0.0).to(tl.float32)
    shift = tl.load(ln_bias + h * width + column, mask=inside, other=0.0).to(tl.float32)
    first = weights + h * size
    state = 2 * (b * heads + h) * size
    if initial is not None:
        base, bias = _matrix(initial + state, width, row, column)
        gathered, bias_gathered = _matrix(initial + state + size, width, row, column)
        read, read_bias = base - gathered, bias - bias_gathered
    else:
        base, bias = _matrix(first, width, row, column)
        read, read_bias = base, bias
    t = tl.zeros([], dtype=tl.int32)
    while t < length:
        starts = _starts(reset, b, length, t)
        if starts:
            base, bias = _matrix(first, width, row, column)
            read, read_bias = base, bias
        # A place of 0 begins the next mini-batch.
        ahead = tl.load(place + b * length + t + i, mask=(i > 0) & (t + i < length), other=1)
        n = tl.min(tl.where(ahead == 0, i, tl.minimum(MINI_BATCH, length - t)))
        if before is not None:  # noqa: SIM102
            if tl.where(starts, 0, t) > 0:
                slot = (b * slots + (t - 1) // MINI_BATCH) * heads + h
                _put_matrix(before + slot * size, base, bias, width, row, column, inside)
        mask = i < n
        q_rows = rows(q, q_b, q_t, q_h, b, h, t + i, mask, column, width, 1)
        k_rows = rows(k, k_b, k_t, k_h, b, h, t + i, mask, column, width, 1)
        v_rows = rows(v, v_b, v_t, v_h, b, h, t + i, mask, column, width, 1)
        rate = tl.load(eta + b * eta_b + (t + i) * eta_t + h * eta_h, mask=mask, other=0.0).to(tl.float32)
        _, _, _, _, moves, _, found, _ = _work(
            q_rows, k_rows, v_rows, rate, base, bias, read, read_bias, scale, shift, inside, i, width, epsilon,
            PRECISION,
        )  # fmt: skip
        out = q_rows + scale[None, :] * found + shift[None, :]
        put_rows(o, out, b, h, t + i, mask, column, length, heads, width, 1)
        read += tl.dot(tl.trans(k_rows), moves, input_precision=PRECISION)
        read_bias += tl.sum(moves, 0)
        closes = tl.load(place + b * length + t + n - 1) == MINI_BATCH - 1
        base, bias = tl.where(closes, read, base), tl.where(closes, read_bias, bias)
        t += n
    _put_matrix(final + state, base, bias, width, row, column, inside)
    _put_matrix(final + state + size, base - read, bias - read_bias, width, row, column, inside)


@triton.jit
def _backward(
    q, q_b, q_t, q_h, k, k_b, k_t, k_h, v, v_b, v_t, v_h, eta, eta_b, eta_t, eta_h, do, do_b, do_t, do_h,
    weights, ln_weight, ln_bias, initial, place, reset, before, dfinal,
    dq, dk, dv, deta, dweights, dscale, dshift, dinitial, length, heads, width, slots, epsilon,
    MINI_BATCH: tl.constexpr, T: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    b, h = (tl.program_id(0) // heads).to(tl.int64), tl.program_id(0) % heads
    i, row, column = tl.arange(0, T), tl.arange(0, BLOCK), tl.arange(0, BLOCK)
    inside, size = column < width, (width + 1) * width
    scale = tl.load(ln_weight + h * width + column, mask=inside, other=0.0).to(tl.float32)
    shift = tl.load(ln_bias + h * width + column, mask=inside, other=0.0).to(tl.float32)
    first = weights + h * size
    state = 2 * (b * heads + h) * size
    dbase, dbias = tl.zeros([BLOCK, BLOCK], dtype=tl.float32), tl.zeros([BLOCK], dtype=tl.float32)
    dread, dread_bias = tl.zeros([BLOCK, BLOCK], dtype=tl.float32), tl.zeros([BLOCK], dtype=tl.float32)
    dfirst, dfirst_bias = tl.zeros([BLOCK, BLOCK], dtype=tl.float32), tl.zeros([BLOCK], dtype=tl.float32)
    scale_sum, shift_sum = tl.zeros([BLOCK], dtype=tl.float32), tl.zeros([BLOCK], dtype=tl.float32)
    if dfinal is not None:
        dbase, dbias = _matrix(dfinal + state, width, row, column)
        # A full mini-batch leaves the weights after it alone; another one its base, and the difference of both.
        if tl.load(place + b * length + length - 1) != MINI_BATCH - 1:
            dread, dread_bias = _matrix(dfinal + state + size, width, row, column)
            dbase, dbias, dread, dread_bias = dbase + dread, dbias + dread_bias, -dread, -dread_bias
    end = tl.zeros([], dtype=tl.int32) + length
    while end > 0:
        last = tl.load(place + b * length + end - 1).to(tl.int32)
        t = tl.maximum(end - 1 - last, 0)
        starts = _starts(reset, b, length, t)
        if last == MINI_BATCH - 1:
            dread, dread_bias = dread + dbase, dread_bias + dbias
            dbase, dbias = tl.zeros_like(dbase), tl.zeros_like(dbias)
        origin = first
        if tl.where(starts, 0, t) > 0:
            origin = before + ((b * slots + (t - 1) // MINI_BATCH) * heads + h) * size
        if initial is not None:  # noqa: SIM102 - a compiled kernel knows the one, not the other
            if tl.where(starts, 1, t) == 0:
                origin = initial + state
        base, bias = _matrix(origin, width, row, column)
        read, read_bias = base, bias
        if initial is not None:  # noqa: SIM102 - a compiled kernel knows the one, not the other
            if tl.where(starts, 1, t) == 0:
                gathered, bias_gathered = _matrix(initial + state + size, width, row, column)
                read, read_bias = base - gathered, bias - bias_gathered
        mask = t + i < end
        q_rows = rows(q, q_b, q_t, q_h, b, h, t + i, mask, column, width, 1)
        k_rows = rows(k, k_b, k_t, k_h, b, h, t + i, mask, column, width, 1)
        v_rows = rows(v, v_b, v_t, v_h, b, h, t + i, mask, column, width, 1)
        rate = tl.load(eta + b * eta_b + (t + i) * eta_t + h * eta_h, mask=mask, other=0.0).to(tl.float32)
        x, by, error, gradient, moves, scores, found, found_by = _work(
            q_rows, k_rows, v_rows, rate, base, bias, read, read_bias, scale, shift, inside, i, width, epsilon,
            PRECISION,
        )  # fmt: skip
        into = tl.zeros([T, BLOCK], dtype=tl.float32)
        if do is not None:
            into = rows(do, do_b, do_t, do_h, b, h, t + i, mask, column, width, 1)
        scale_sum += tl.sum(into * found, 0)
        shift_sum += tl.sum(into, 0)
        dfound = _through_norm(scale[None, :] * into, found, found_by, inside, width)
        dmoves = tl.dot(k_rows, dread, input_precision=PRECISION) + dread_bias[None, :]
        dmoves += tl.dot(tl.trans(scores), dfound, input_precision=PRECISION)
        dscores = tl.dot(dfound, tl.trans(moves), input_precision=PRECISION)
        dscores = tl.where(i[:, None] >= i[None, :], dscores, 0.0)
        dq_rows = into + tl.dot(dfound, tl.trans(read), input_precision=PRECISION)
        dq_rows += tl.dot(dscores, k_rows, input_precision=PRECISION)
        put_rows(dq, dq_rows, b, h, t + i, mask, column, length, heads, width, 1)
        dk_rows = tl.dot(tl.trans(dscores), q_rows, input_precision=PRECISION)
        dk_rows += tl.dot(moves, tl.trans(dread), input_precision=PRECISION)
        tl.store(deta + (b * length + t + i) * heads + h, -tl.sum(dmoves * gradient, 1), mask=mask)
        # The gradient is itself the way back through a norm: of scale * error, less its parts along 1 and x.
        dgradient = -rate[:, None] * dmoves
        scaled = scale[None, :] * error
        dscaled = _through_norm(dgradient, x, by, inside, width)
        derror = scale[None, :] * dscaled
        scale_sum += tl.sum(dscaled * error + derror * x, 0)
        shift_sum += tl.sum(derror, 0)
        a, c = tl.sum(scaled * x, 1) / width * by, tl.sum(dgradient * x, 1) / width * by
        dx = scale[None, :] * derror - dgradient * a[:, None] - scaled * c[:, None]
        ddeviation = -tl.sum(dgradient * gradient, 1) / width * by
        dz = _through_norm(dx, x, by, inside, width) + ddeviation[:, None] * x
        dk_rows += derror + tl.dot(dz, tl.trans(base), input_precision=PRECISION)
        put_rows(dk, dk_rows, b, h, t + i, mask, column, length, heads, width, 1)
        put_rows(dv, -derror, b, h, t + i, mask, column, length, heads, width, 1)
        dread += tl.dot(tl.trans(q_rows), dfound, input_precision=PRECISION)
        dread_bias += tl.sum(dfound, 0)
        dbase += tl.dot(tl.trans(k_rows), dz, input_precision=PRECISION)
        dbias += tl.sum(dz, 0)
        if starts:
            dfirst, dfirst_bias = dfirst + dbase + dread, dfirst_bias + dbias + dread_bias
            dbase, dbias = tl.zeros_like(dbase), tl.zeros_like(dbias)
            dread, dread_bias = tl.zeros_like(dread), tl.zeros_like(dread_bias)
        end = t
    if initial is not None:
        _put_matrix(dinitial + state, dbase + dread, dbias + dread_bias, width, row, column, inside)
        _put_matrix(dinitial + state + size, -dread, -dread_bias, width, row, column, inside)
    else:
        dfirst, dfirst_bias = dfirst + dbase + dread, dfirst_bias + dbias + dread_bias
    _put_matrix(dweights + (b * heads + h) * size, dfirst, dfirst_bias, width, row, column, inside)
    tl.store(dscale + (b * heads + h) * width + column, scale_sum, mask=inside)
    tl.store(dshift + (b * heads + h) * width + column, shift_sum, mask=inside)


def _blocks(q: Tensor, mini_batch: int) -> dict[str, Any]:
    block = max(16, triton.next_power_of_2(q.shape[3]))
    return {
        "MINI_BATCH": mini_batch,
        "T": max(16, triton.next_power_of_2(mini_batch)),
        "BLOCK": block,
        "PRECISION": EXACT if q.dtype == torch.float32 else "tf32",
        "num_warps": 4 if block <= 32 else 8,
    }


def _sequence(x: Tensor | None) -> tuple[Tensor | None, int, int, int]:
    return sequence(x if x is None or x.stride(-1) == 1 else x.contiguous())


def _shared(weights: Tensor, *others: Tensor | None) -> tuple[Tensor | None, ...]:
    """Return the tensors contiguous, the weights in the states' dtype."""
    return weights.float().contiguous(), *(None if x is None else x.contiguous() for x in others)


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    eta: Tensor,
    weights: Tensor,
    ln_weight: Tensor,
    ln_bias: Tensor,
    initial_state: Tensor | None,
    position: Tensor | None,
    reset: Tensor | None,
    mini_batch: int,
    epsilon: float,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute o, the final state and the weights before mini-batches; as :func:`.chunked.forward`."""
    batch, length, heads, width = q.shape
    o = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    final = o.new_empty((batch, heads, 2, *weights.shape[1:]), dtype=torch.float32)
    slots = saved_slots(length, mini_batch) if save else 0
    before = final.new_zeros((batch, slots, *weights.shape))
    if q.numel():
        with on_device(q):
            _forward[(batch * heads,)](
                *_sequence(q), *_sequence(k), *_sequence(v), *_sequence(eta.unsqueeze(-1)),
                *_shared(weights, ln_weight, ln_bias, initial_state, places(q, position, reset, mini_batch), reset),
                o, final, before if slots else None, length, heads, width, slots, epsilon, **_blocks(q, mini_batch),
            )  # fmt: skip
    return o, final, before


def backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    eta: Tensor,
    weights: Tensor,
    ln_weight: Tensor,
    ln_bias: Tensor,
    initial_state: Tensor | None,
    position: Tensor | None,
    reset: Tensor | None,
    mini_batch: int,
    epsilon: float,
    before: Tensor,
    do: Tensor | None,
    dfinal: Tensor | None,
) -> tuple[Tensor, ...]:
    """Compute the gradients of all tensors, computing each mini-batch again; as :func:`.chunked.backward`."""
    batch, length, heads, width = q.shape
    make = torch.empty if q.numel() else torch.zeros
    dq, dk, dv, deta = (make(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v, eta))
    # Each row has sums of its own, added up below, so that their order is fixed.
    shared = [make((batch, *x.shape), dtype=torch.float32, device=x.device) for x in (weights, ln_weight, ln_bias)]
    dinitial = before.new_zeros(0 if initial_state is None else initial_state.shape)
    if q.numel():
        with on_device(q):
            _backward[(batch * heads,)](
                *_sequence(q), *_sequence(k), *_sequence(v), *_sequence(eta.unsqueeze(-1)), *_sequence(do),
                *_shared(weights, ln_weight, ln_bias, initial_state, places(q, position, reset, mini_batch), reset),
                before.contiguous(), None if dfinal is None else dfinal.contiguous(),
                dq, dk, dv, deta, *shared, dinitial, length, heads, width, before.shape[1], epsilon,
                **_blocks(q, mini_batch),
            )  # fmt: skip
    sums = (x.sum(0).to(y.dtype) for x, y in zip(shared, (weights, ln_weight, ln_bias), strict=True))
    return dq, dk, dv, deta, *sums, dinitial
