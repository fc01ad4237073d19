"""newton_scan: cells with diagonal recurrent weights, solved for all steps at once or run step by step."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from ..checks import FLOATS, check_device, check_dtype, check_length, check_shape, state_dtype
from ..cpu import refuses as cpu_refuses
from ..dispatch import Kernel, always, register_kernel, select
from ..library import define_op, gradients_of
from . import chunked, cpu
from .cells import Cell, find_cell
from .chunked import ConvergenceError
from .reference import newton_scan_reference

__all__ = ["ConvergenceError", "newton_scan"]

_OP = "newton_scan"


def newton_scan(
    wx: Tensor,
    r: Tensor,
    bias: Tensor | None = None,
    *,
    cell: str = "gru",
    tol: float | None = None,
    max_iterations: int = 100,
    initial_state: tuple[Tensor, ...] | None = None,
    reset: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run a recurrent cell with diagonal recurrent weights over axis 1, each channel by itself.

    With ``a = wx + bias``:

    - ``gru``: gates z, q, n, weights r_z, r_q, r_n, state h: ``z = sigmoid(a_z + r_z h)``,
      ``q = sigmoid(a_q + r_q h)``, ``n = tanh(a_n + r_n (q h))``, ``h = (1 - z) h + z n``.
    - ``lstm``: gates f, g, o, weights r_f, r_g, r_o and peepholes p_f, p_o, state h, c:
      ``f = sigmoid(a_f + r_f h + p_f c)``, ``c = f c + (1 - f) tanh(a_g + r_g h)``,
      ``o = sigmoid(a_o + r_o h + p_o c)`` with the new c, ``h = o tanh(c)``.

    ``chunked`` solves ``h_t = f(h_{t-1}, x_t)`` for all t at once: from ``h_t = f(0, x_t)`` each of Newton's iterations
    is a linear scan with f's Jacobian, until the equations hold to ``tol``. Every other backend runs the recurrence
    itself, without iterations.

    Args:
        wx: Gates' pre-activations from the input, (B, L, G, C) float32, float64, bfloat16 or float16, with G gates.
        r: Recurrent weights, one row per gate, then the peepholes: (3, C) for ``gru``, (5, C) for ``lstm``. wx's dtype
            or the state's, as bias.
        bias: Added to wx, (G, C); none if None.
        cell: ``gru`` or ``lstm``.
        tol: Largest ``|h_t - f(h_{t-1}, x_t)|`` that ``chunked`` accepts, relative to the largest of 1 and the initial
            state; None is 16 units of rounding of the state's dtype.
        max_iterations: Iterations after which ``chunked`` gives up; as many as there are steps always suffice.
        initial_state: State before the first step, as a call returned it: a tensor (B, C) for each of the cell's
            states. Zeros if None.
        reset: (B, L) bool; where True the state before that step counts as zero: the first step of each sequence of a
            packed batch.
        backend: Force ``triton``, ``cpu``, ``chunked`` or ``reference``; None chooses by device.

    Returns:
        y: h, (B, L, C), wx's dtype.
        final_state: The state after the last step, a tuple of tensors (B, C); float32 for half types, else wx's dtype.

    Raises:
        TypeError: A dtype is not supported or does not fit wx's, or ``initial_state`` is not the cell's tuple.
        ValueError: There is no such cell, shapes or devices do not fit, the length is 0, or ``tol`` or
            ``max_iterations`` is not positive.
        ConvergenceError: ``chunked`` did not reach ``tol`` within ``max_iterations``.
        BackendError: A forced backend cannot serve the call.

    Source:
        Danieli et al., ParaRNN (2025): ParaGRU and ParaLSTM.

    Example:
        >>> import torch
        >>> from scanweave.kernels import newton_scan
        >>> y, (h,) = newton_scan(torch.ones(1, 3, 3, 1), torch.ones(3, 1))
        >>> [round(x, 2) for x in y.flatten().tolist()]
        [0.56, 0.84, 0.92]
    """
    chosen_cell = find_cell(cell)
    _check(chosen_cell, wx, r, bias, reset)
    tol = 16 * torch.finfo(state_dtype(wx.dtype)).eps if tol is None else tol
    if not tol > 0 or max_iterations < 1:
        raise ValueError(f"{_OP}: tol is {tol} and max_iterations {max_iterations}, expected both above 0")
    arguments = (wx, r, bias, _state(chosen_cell, wx, initial_state), reset, cell)
    chosen = select(_OP, wx, backend)
    if chosen == "reference":
        y, final = newton_scan_reference(*arguments)
    else:
        y, final, _ = _op(*arguments, tol, max_iterations, False, chosen)
    return y, final.unbind(1)


def _check(cell: Cell, wx: Tensor, r: Tensor, bias: Tensor | None, reset: Tensor | None) -> None:
    check_dtype(_OP, "wx", wx, FLOATS)
    gates = len(cell.gates)
    if wx.dim() != 4 or wx.shape[2] != gates:
        names = f"the {cell.name} cell's gates {', '.join(cell.gates)}"
        raise ValueError(f"{_OP}: wx has shape {tuple(wx.shape)}, expected (B, L, {gates}, C) with {names} on axis 2")
    check_length(_OP, "wx", wx)
    channels, dtypes = wx.shape[3], (state_dtype(wx.dtype), wx.dtype)
    check_dtype(_OP, "r", r, dtypes)
    check_shape(_OP, "r", r, (len(cell.weights), channels), f"(weights {', '.join(cell.weights)}; C)")
    if bias is not None:
        check_dtype(_OP, "bias", bias, dtypes)
        check_shape(_OP, "bias", bias, (gates, channels), "(G, C)")
    if reset is not None:
        check_dtype(_OP, "reset", reset, (torch.bool,))
        check_shape(_OP, "reset", reset, tuple(wx.shape[:2]), "(B, L)")
    check_device(_OP, wx, {"r": r, "bias": bias, "reset": reset})


def _state(cell: Cell, wx: Tensor, given: tuple[Tensor, ...] | None) -> Tensor:
    """Return the checked initial state as one tensor (B, S, C) in the state's dtype."""
    (batch, _, _, channels), dtype, names = wx.shape, state_dtype(wx.dtype), cell.states
    if given is None:
        return wx.new_zeros((batch, len(names), channels), dtype=dtype)
    if not isinstance(given, tuple) or len(given) != len(names):
        found = f"tuple of {len(given)}" if isinstance(given, tuple) else type(given).__name__
        raise TypeError(f"{_OP}: initial_state is a {found}, expected a tuple of {cell.name}'s {', '.join(names)}")
    for field, part in zip(names, given, strict=True):
        name = f"initial_state {field!r}"
        check_dtype(_OP, name, part, (dtype, wx.dtype))
        check_shape(_OP, name, part, (batch, channels), "(B, C)")
        check_device(_OP, wx, {name: part})
    return torch.stack([part.to(dtype) for part in given], 1)


def _fake(
    wx: Tensor,
    r: Tensor,
    bias: Tensor | None,
    initial: Tensor,
    reset: Tensor | None,
    cell: str,
    tol: float,
    max_iterations: int,
    save: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    batch, length, _, channels = wx.shape
    states = initial.new_empty((batch, length if save else 0, initial.shape[1], channels))
    return wx.new_empty((batch, length, channels)), initial.new_empty(initial.shape), states


def _fake_backward(wx: Tensor, r: Tensor, bias: Tensor | None, initial: Tensor, *others: Any) -> tuple[Tensor, ...]:
    dbias = r.new_empty(0) if bias is None else bias.new_empty(bias.shape)
    return wx.new_empty(wx.shape), r.new_empty(r.shape), dbias, initial.new_empty(initial.shape)


def _gradients(*saved: Any) -> tuple[Tensor | None, ...]:
    """Return the gradients by differentiating the reference form: for a gradient of the gradient."""
    arguments, (_, dy, dfinal) = saved[:6], saved[6:]
    return gradients_of(newton_scan_reference, arguments, (dy, dfinal))[:4]


_ARGUMENTS = "Tensor wx, Tensor r, Tensor? bias, Tensor initial, Tensor? reset, str cell, "
_op = define_op(
    _OP,
    schema=f"({_ARGUMENTS}float tol, int max_iterations, bool save, str backend) -> (Tensor, Tensor, Tensor)",
    backward_schema=(
        f"({_ARGUMENTS}Tensor states, Tensor? dy, Tensor? dfinal, str backend) -> (Tensor, Tensor, Tensor, Tensor)"
    ),
    fake=_fake,
    fake_backward=_fake_backward,
    saved=lambda arguments, outputs: (*arguments[:6], outputs[2]),
    differentiable=tuple(range(4)),
    batched=(0, 3, 4),
    twice=_gradients,
    extras=1,
)
register_kernel(_OP, "reference", Kernel(newton_scan_reference, None, always))
register_kernel(_OP, "chunked", Kernel(chunked.forward, chunked.backward, always))
register_kernel(_OP, "cpu", Kernel(cpu.forward, cpu.backward, cpu_refuses))
if find_spec("triton"):
    from . import triton

    register_kernel(_OP, "triton", Kernel(triton.forward, triton.backward, triton.refuses))
