"""The cells that cell_scan knows: what happens to one step's gates, each as one function of PyTorch ops."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

States = tuple[Tensor, ...]


def _same(dwx: Tensor, trace: Tensor) -> Tensor:
    """Return the gradient of the recurrent product where it is simply added to wx."""
    return dwx


@dataclass(frozen=True)
class Cell:
    """A recurrent cell: a head's features see each other through the recurrent product alone.

    Args:
        name: What ``cell_scan(cell=...)`` calls it.
        gates: Names of the gates, in the order of wx's axis 3 and R's axis 1.
        states: Names of the state's tensors; the first is the output, which the recurrent product reads.
        step: From one step's wx and recurrent product (bias included), (B, H, G, D) each, and the state before it, a
            tuple of tensors (B, H, D), to the state after it; elementwise, differentiable, in at least float32. A state
            of zeros is one that nothing has happened to.
        planes: How many tensors (B, L, H, D) the C++ and Triton forms save for the backward pass.
        recurrent: From wx's gradient (B, L, H, G, D) and those tensors (B, L, H, planes, D) to the recurrent product's
            gradient; the same as wx's by default.
    """

    name: str
    gates: tuple[str, ...]
    states: tuple[str, ...]
    step: Callable[[Tensor, Tensor, States], States]
    planes: int = 0
    recurrent: Callable[[Tensor, Tensor], Tensor] = _same


CELLS: dict[str, Cell] = {}


def register_cell(cell: Cell) -> Cell:
    """Make a cell known to :func:`cell_scan` by its name; ``chunked`` and ``reference`` serve it.

    Args:
        cell: Its gates, its states and its step.

    Returns:
        The cell.

    Raises:
        ValueError: It has no gate or no state, or another cell has its name.

    Example:
        >>> import torch
        >>> from scanweave.kernels import Cell, cell_scan, register_cell
        >>> def leak(wx, recurrent, state):
        ...     return (0.5 * state[0] + (wx + recurrent).squeeze(2).relu(),)
        >>> leaky = register_cell(Cell("leaky", gates=("a",), states=("h",), step=leak))
        >>> y, state = cell_scan(torch.ones(1, 3, 1, 1, 1), torch.zeros(1, 1, 1, 1), cell="leaky")
        >>> y.flatten().tolist()
        [1.0, 1.5, 1.75]
    """
    if not cell.gates or not cell.states:
        raise ValueError(f"cell {cell.name!r} has gates {cell.gates} and states {cell.states}, expected one of each")
    if CELLS.setdefault(cell.name, cell) != cell:
        raise ValueError(f"cell {cell.name!r} is registered already, with gates {CELLS[cell.name].gates}")
    return cell


def find_cell(name: str) -> Cell:
    """Return the registered cell of that name.

    Raises:
        ValueError: There is none; the message gives the nearest and those that there are.
    """
    if name not in CELLS:
        close = difflib.get_close_matches(name, CELLS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"cell_scan: there is no cell {name!r}{hint}; there are {', '.join(CELLS)}")
    return CELLS[name]


def elman(wx: Tensor, recurrent: Tensor, state: States) -> States:
    """``h = tanh(a)``.

    Source:
        Elman, Finding structure in time (1990); as torch.nn.RNN.
    """
    return ((wx + recurrent).squeeze(2).tanh(),)


def lstm(wx: Tensor, recurrent: Tensor, state: States) -> States:
    """``c = sigmoid(f) c + sigmoid(i) tanh(g)``, ``h = sigmoid(o) tanh(c)``.

    Source:
        Hochreiter and Schmidhuber (1997), with the forget gate of Gers et al. (2000); as torch.nn.LSTM.
    """
    i, f, g, o = (wx + recurrent).unbind(2)
    c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def gru(wx: Tensor, recurrent: Tensor, state: States) -> States:
    """``n = tanh(wx_n + r (R_n h + bias_n))``, ``h = (1 - z) n + z h``, r and z through a sigmoid.

    Source:
        Cho et al. (2014), section 2.3; the reset gate after the product, as torch.nn.GRU.
    """
    (r, z), (wx_n, q) = (wx + recurrent)[:, :, :2].sigmoid().unbind(2), (wx[:, :, 2], recurrent[:, :, 2])
    n = torch.tanh(wx_n + r * q)
    return (n + z * (state[0] - n),)


def _gru_recurrent(dwx: Tensor, trace: Tensor) -> Tensor:
    """Return the gradient of the recurrent product, whose third gate the reset gate r, plane 0, scales."""
    return torch.cat([dwx[..., :2, :], dwx[..., 2:, :] * trace[..., :1, :]], -2)


def _exponential(i: Tensor, log_f: Tensor, z: Tensor, o: Tensor, state: States) -> States:
    _, c, n, m = state
    # A state without weight, such as the first, has no exponent to keep.
    carried = torch.where(n == 0, -torch.inf, log_f + m)
    m = torch.maximum(carried, i)
    gain, keep = torch.exp(i - m), torch.exp(carried - m)
    c, n = keep * c + gain * z.tanh(), keep * n + gain
    return o.sigmoid() * c / n, c, n, m


def slstm(wx: Tensor, recurrent: Tensor, state: States) -> States:
    """``c = f' c + i' tanh(z)``, ``n = f' n + i'``, ``h = sigmoid(o) c / n``: an LSTM with an exponential input gate.

    ``log f = logsigmoid(f~)``, ``m_t = max(log f + m_{t-1}, i~)``, ``f' = exp(log f + m_{t-1} - m_t)``,
    ``i' = exp(i~ - m_t)``. Where n is 0 (a fresh state), ``m_t = i~`` and ``f' = 0``.

    Source:
        Beck et al., xLSTM (2024), equations 8 to 17.
    """
    i, f, z, o = (wx + recurrent).unbind(2)
    return _exponential(i, F.logsigmoid(f), z, o, state)


def slstm_exp(wx: Tensor, recurrent: Tensor, state: States) -> States:
    """:func:`slstm` with the exponential forget gate, ``log f = f~``.

    Source:
        Beck et al., xLSTM (2024), equation 13.
    """
    i, f, z, o = (wx + recurrent).unbind(2)
    return _exponential(i, f, z, o, state)


_EXPONENTIAL = ("h", "c", "n", "m")
# Planes that the compiled forms save: none; i, f, g, o, c; r, z, n, q; i', f', z, o, c, n, d(log f)/d(f~).
register_cell(Cell("elman", ("a",), ("h",), elman))
register_cell(Cell("lstm", ("i", "f", "g", "o"), ("h", "c"), lstm, planes=5))
register_cell(Cell("gru", ("r", "z", "n"), ("h",), gru, planes=4, recurrent=_gru_recurrent))
register_cell(Cell("slstm", ("i", "f", "z", "o"), _EXPONENTIAL, slstm, planes=7))
register_cell(Cell("slstm_exp", ("i", "f", "z", "o"), _EXPONENTIAL, slstm_exp, planes=7))
