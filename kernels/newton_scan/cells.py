"""The cells that newton_scan knows: one step, and its derivatives at every step at once, elementwise."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

States = tuple[Tensor, ...]


@dataclass(frozen=True)
class Step:
    """What one step makes of the state before it, and how that changes with state and gates.

    Args:
        state: The state after the step, a tuple of tensors (..., C).
        jacobian: Its derivative by the state before, (..., S, S, C), the output's index first.
        pull: From the gradient of the state after the step, a tuple, to that of the gates' pre-activations, a tuple.
        reads: For each row of r, the gate that it feeds and what it is multiplied with there.
    """

    state: States
    jacobian: Tensor
    pull: Callable[[States], States]
    reads: tuple[tuple[int, Tensor], ...]


@dataclass(frozen=True)
class Cell:
    """A recurrent cell whose channels see themselves alone.

    Args:
        name: What ``newton_scan(cell=...)`` calls it.
        gates: Names of the gates, in the order of wx's axis 2.
        weights: Names of the recurrent weights, in the order of r's axis 0.
        states: Names of the state's tensors; the first is the output.
        step: From gates' pre-activations (..., G, C), r (R, C) and the state before to the state after, differentiable.
        expand: From the same to :class:`Step`.
    """

    name: str
    gates: tuple[str, ...]
    weights: tuple[str, ...]
    states: tuple[str, ...]
    step: Callable[[Tensor, Tensor, States], States]
    expand: Callable[[Tensor, Tensor, States], Step]


def gru(a: Tensor, r: Tensor, state: States) -> States:
    """``h = (1 - z) h + z n``, ``n = tanh(a_n + r_n (q h))``, z and the reset gate q through a sigmoid.

    Source:
        Danieli et al., ParaRNN (2025), ParaGRU: the reset gate before the recurrent weight.
    """
    (h,) = state
    z, q = (a[..., 0, :] + r[0] * h).sigmoid(), (a[..., 1, :] + r[1] * h).sigmoid()
    n = (a[..., 2, :] + r[2] * (q * h)).tanh()
    return (h + z * (n - h),)


def _expand_gru(a: Tensor, r: Tensor, state: States) -> Step:
    (h,) = state
    z, q = (a[..., 0, :] + r[0] * h).sigmoid(), (a[..., 1, :] + r[1] * h).sigmoid()
    n = (a[..., 2, :] + r[2] * (q * h)).tanh()
    by_z, by_n = (n - h) * z * (1 - z), z * (1 - n * n)
    by_q = by_n * r[2] * h * q * (1 - q)
    jacobian = (1 - z) + by_z * r[0] + by_q * r[1] + by_n * r[2] * q

    def pull(grads: States) -> States:
        (g,) = grads
        return g * by_z, g * by_q, g * by_n

    return Step((h + z * (n - h),), jacobian[..., None, None, :], pull, ((0, h), (1, h), (2, q * h)))


def lstm(a: Tensor, r: Tensor, state: States) -> States:
    """``c = f c + (1 - f) tanh(a_g + r_g h)``, ``h = o tanh(c)``, with peepholes: f sees c before, o sees c after.

    Source:
        Danieli et al., ParaRNN (2025), ParaLSTM: input and forget gate combined, peepholes.
    """
    h, c = state
    f = (a[..., 0, :] + r[0] * h + r[3] * c).sigmoid()
    g = (a[..., 1, :] + r[1] * h).tanh()
    c = g + f * (c - g)
    o = (a[..., 2, :] + r[2] * h + r[4] * c).sigmoid()
    return o * c.tanh(), c


def _expand_lstm(a: Tensor, r: Tensor, state: States) -> Step:
    h, c = state
    f = (a[..., 0, :] + r[0] * h + r[3] * c).sigmoid()
    g = (a[..., 1, :] + r[1] * h).tanh()
    after = g + f * (c - g)
    o, top = (a[..., 2, :] + r[2] * h + r[4] * after).sigmoid(), after.tanh()
    by_f, by_g, by_o = (c - g) * f * (1 - f), (1 - f) * (1 - g * g), top * o * (1 - o)
    h_by_c = o * (1 - top * top) + by_o * r[4]
    c_by_h, c_by_c = by_f * r[0] + by_g * r[1], f + by_f * r[3]
    rows = [[by_o * r[2] + h_by_c * c_by_h, h_by_c * c_by_c], [c_by_h, c_by_c]]

    def pull(grads: States) -> States:
        through = grads[1] + grads[0] * h_by_c
        return through * by_f, through * by_g, grads[0] * by_o

    jacobian = torch.stack([torch.stack(row, -2) for row in rows], -3)
    return Step((o * top, after), jacobian, pull, ((0, h), (1, h), (2, h), (0, c), (2, after)))


CELLS = {
    cell.name: cell
    for cell in (
        Cell("gru", ("z", "q", "n"), ("z", "q", "n"), ("h",), gru, _expand_gru),
        Cell("lstm", ("f", "g", "o"), ("f", "g", "o", "f's peephole", "o's peephole"), ("h", "c"), lstm, _expand_lstm),
    )
}


def find_cell(name: str) -> Cell:
    """Return the cell of that name.

    Raises:
        ValueError: There is none; the message gives the nearest and those that there are.
    """
    if name not in CELLS:
        close = difflib.get_close_matches(name, CELLS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"newton_scan: there is no cell {name!r}{hint}; there are {', '.join(CELLS)}")
    return CELLS[name]
