"""The cells of cell_scan on tiles: what one step makes of the gates, and its gradient.

A cell is a pair of functions and a line in each of the two that choose. Forward: from the gates' inputs ``x``, the
recurrent products with the bias ``q`` and the states ``s`` before the step, h first, to the states after it, followed
by the planes of the trace: what backward reads of the step. Backward: from these planes ``kept``, the states before
the step, the new ``h`` and the gradients ``d`` of the new states to those of the inputs, of the products, and of the
states before less what reaches h through the products.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..selective_scan.triton import logistic, softplus

#: The cells that these functions know; of each the plane from which on there are states other than h, in their order,
#: and how many states before a step backward reads, h among them.
CELLS = {"elman": (0, 1), "lstm": (4, 2), "gru": (4, 1), "slstm": (4, 3), "slstm_exp": (4, 3)}


@triton.jit
def tanh(x):
    e = tl.exp(-2.0 * tl.abs(x))
    t = (1.0 - e) / (1.0 + e)
    return tl.where(x < 0, -t, t)


@triton.jit
def _elman(x, q, s):
    return (tanh(x[0] + q[0]),)


@triton.jit
def _elman_backward(kept, before, h, d):
    da = d[0] * (1.0 - h * h)
    return (da,), (da,), (tl.zeros_like(da),)


@triton.jit
def _lstm(x, q, s):
    i, f, g, o = logistic(x[0] + q[0]), logistic(x[1] + q[1]), tanh(x[2] + q[2]), logistic(x[3] + q[3])
    c = f * s[1] + i * g
    return o * tanh(c), c, i, f, g, o, c


@triton.jit
def _lstm_backward(kept, before, h, d):
    i, f, g, o = kept[0], kept[1], kept[2], kept[3]
    level = tanh(kept[4])
    dc = d[1] + d[0] * o * (1.0 - level * level)
    di, df, dg, do = dc * g * i * (1.0 - i), dc * before[1] * f * (1.0 - f), dc * i * (1.0 - g * g), d[0] * level
    do *= o * (1.0 - o)
    return (di, df, dg, do), (di, df, dg, do), (tl.zeros_like(dc), dc * f)


@triton.jit
def _gru(x, q, s):
    r, z = logistic(x[0] + q[0]), logistic(x[1] + q[1])
    n = tanh(x[2] + r * q[2])
    return n + z * (s[0] - n), r, z, n, q[2]


@triton.jit
def _gru_backward(kept, before, h, d):
    r, z, n = kept[0], kept[1], kept[2]
    dn = d[0] * (1.0 - z) * (1.0 - n * n)
    dr, dz = dn * kept[3] * r * (1.0 - r), d[0] * (before[0] - n) * z * (1.0 - z)
    return (dr, dz, dn), (dr, dz, dn * r), (d[0] * z,)


@triton.jit
def _slstm(x, q, s, EXPONENTIAL: tl.constexpr):
    i, log_f, z, o = x[0] + q[0], x[1] + q[1], tanh(x[2] + q[2]), logistic(x[3] + q[3])
    slope = tl.full(log_f.shape, 1.0, tl.float32)
    if not EXPONENTIAL:
        slope = logistic(-log_f)
        log_f = -softplus(-log_f)
    # A state without weight, such as the first, has no exponent to keep.
    fresh = s[2] == 0.0
    past = log_f + s[3]
    m = tl.where(fresh, i, tl.maximum(past, i))
    gain, keep = tl.exp(i - m), tl.where(fresh, 0.0, tl.exp(tl.minimum(past - m, 0.0)))
    c, n = keep * s[1] + gain * z, keep * s[2] + gain
    return o * c / n, c, n, m, gain, keep, z, o, c, n, slope


@triton.jit
def _slstm_backward(kept, before, h, d):
    gain, keep, z, o = kept[0], kept[1], kept[2], kept[3]
    part = 1.0 / kept[5]
    mean, into = kept[4] * part, d[0] * o * part
    dc, dn = d[1] + into, d[2] - into * mean
    di, df = (dc * z + dn) * gain, (dc * before[1] + dn * before[2]) * keep
    # m came from the gate whose exponential is 1; from both, half each.
    dm = d[3] - di - df
    carried = tl.where(keep == 1.0, tl.where(gain == 1.0, 0.5, 1.0), 0.0) * dm
    dx = (di + dm - carried, (df + carried) * kept[6], dc * gain * (1.0 - z * z), d[0] * mean * o * (1.0 - o))
    return dx, dx, (tl.zeros_like(dc), dc * keep, dn * keep, df + carried)


@triton.jit
def step(x, q, s, CELL: tl.constexpr):
    """Return the states after a step and what backward reads of it."""
    if CELL == "elman":
        return _elman(x, q, s)
    elif CELL == "lstm":
        return _lstm(x, q, s)
    elif CELL == "gru":
        return _gru(x, q, s)
    else:
        return _slstm(x, q, s, CELL == "slstm_exp")


@triton.jit
def step_backward(kept, before, h, d, CELL: tl.constexpr):
    """Return the gradients of a step's inputs, of its products and of the states before it."""
    if CELL == "elman":
        return _elman_backward(kept, before, h, d)
    elif CELL == "lstm":
        return _lstm_backward(kept, before, h, d)
    elif CELL == "gru":
        return _gru_backward(kept, before, h, d)
    else:
        return _slstm_backward(kept, before, h, d)
