"""cell_scan: recurrent cells, each head with its own recurrent weights; a user may add a cell."""

from __future__ import annotations

from collections.abc import Callable, Collection
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from ..checks import FLOATS, check_device, check_dtype, check_length, check_shape, state_dtype
from ..cpu import refuses as cpu_refuses
from ..dispatch import Kernel, Reason, always, register_kernel, select
from ..library import define_op, gradients_of
from . import chunked, cpu
from .cells import Cell, find_cell, register_cell
from .reference import cell_scan_reference

__all__ = ["Cell", "cell_scan", "register_cell"]

_OP = "cell_scan"
_compiled: dict[str, Collection[str]] = {}  # the cells that a backend has its own form of, by backend


def cell_scan(
    wx: Tensor,
    R: Tensor,
    bias: Tensor | None = None,
    *,
    cell: str = "lstm",
    initial_state: tuple[Tensor, ...] | None = None,
    reset: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run a recurrent cell over axis 1, each head by itself.

    ``s_t = step(wx_t, R h_{t-1} + bias, s_{t-1})``, ``h_t`` the first tensor of the state s_t; a step is elementwise:

    - ``elman``: gate a, state h: ``h = tanh(a)``.
    - ``lstm``: gates i, f, g, o, state h, c: ``c = sigmoid(f) c + sigmoid(i) tanh(g)``, ``h = sigmoid(o) tanh(c)``.
    - ``gru``: gates r, z, n, state h: ``n = tanh(wx_n + r (R_n h + bias_n))``, ``h = (1 - z) n + z h``.
    - ``slstm``: gates i, f, z, o, state h, c, n, m: ``c = f c + i tanh(z)``, ``n = f n + i``, ``h = sigmoid(o) c / n``
      with ``i = exp(i~)``, ``f = sigmoid(f~)``, and c and n kept less the factor ``exp(m)``; ``slstm_exp``:
      ``f = exp(f~)``.
    - what :func:`register_cell` was given.

    Gates stand in torch.nn.LSTM's and torch.nn.GRU's order: ``weight_hh`` of width D, viewed as (1, G, D, D), is R of
    one head.

    Args:
        wx: Gates' pre-activations from the input, ``W x_t`` and its bias, (B, L, H, G, D) float32, float64, bfloat16 or
            float16, with G gates.
        R: Recurrent weights, (H, G, D, D), the output's index before the input's. wx's dtype or the state's, as bias.
        bias: Added to the recurrent product, (H, G, D); none if None.
        cell: A registered cell's name.
        initial_state: State before the first step, as a call returned it: a tensor (B, H, D) for each of the cell's
            states. Zeros if None.
        reset: (B, L) bool; where True the state before that step counts as zero: the first step of each sequence of a
            packed batch.
        backend: Force ``triton``, ``cpu``, ``chunked`` or ``reference``; None chooses by device, and ``chunked`` for a
            cell that the device's own form does not know.

    Returns:
        y: h, (B, L, H, D), wx's dtype.
        final_state: The state after the last step, a tuple of tensors (B, H, D); float32 for half types, else wx's
            dtype.

    Raises:
        TypeError: A dtype is not supported or does not fit wx's, or ``initial_state`` is not the cell's tuple.
        ValueError: There is no such cell, shapes or devices do not fit, or the length is 0.
        BackendError: A forced backend cannot serve the call.

    Source:
        Pöppel et al., FlashRNN (2024), section 3; Beck et al., xLSTM (2024), section 2.2 (slstm).

    Example:
        >>> import torch
        >>> from scanweave.kernels import cell_scan
        >>> y, (h,) = cell_scan(torch.ones(1, 3, 1, 1, 1), torch.ones(1, 1, 1, 1), cell="elman")
        >>> [round(x, 4) for x in y.flatten().tolist()]
        [0.7616, 0.9427, 0.9597]
    """
    chosen_cell = find_cell(cell)
    _check(chosen_cell, wx, R, bias, reset)
    arguments = (wx, R, bias, _state(chosen_cell, wx, initial_state), reset, cell)
    unable = {name: _no_form(name, cell) for name, known in _compiled.items() if cell not in known}
    chosen = select(_OP, wx, backend, unable)
    if chosen == "reference":
        y, final = cell_scan_reference(*arguments)
    else:
        y, final, _ = _op(*arguments, False, chosen)
    return y, final.unbind(1)


def _no_form(backend: str, cell: str) -> str:
    return f"it has no form of the cell {cell!r}, only of {', '.join(_compiled[backend])}; 'chunked' serves every cell"


def _check(cell: Cell, wx: Tensor, R: Tensor, bias: Tensor | None, reset: Tensor | None) -> None:
    check_dtype(_OP, "wx", wx, FLOATS)
    gates = len(cell.gates)
    if wx.dim() != 5 or wx.shape[3] != gates:
        names = f"the {cell.name} cell's gates {', '.join(cell.gates)}"
        raise ValueError(
            f"{_OP}: wx has shape {tuple(wx.shape)}, expected (B, L, H, {gates}, D) with {names} on axis 3"
        )
    check_length(_OP, "wx", wx)
    heads, size, dtypes = wx.shape[2], wx.shape[4], (state_dtype(wx.dtype), wx.dtype)
    check_dtype(_OP, "R", R, dtypes)
    check_shape(_OP, "R", R, (heads, gates, size, size), "(H, G, D, D)")
    if bias is not None:
        check_dtype(_OP, "bias", bias, dtypes)
        check_shape(_OP, "bias", bias, (heads, gates, size), "(H, G, D)")
    if reset is not None:
        check_dtype(_OP, "reset", reset, (torch.bool,))
        check_shape(_OP, "reset", reset, tuple(wx.shape[:2]), "(B, L)")
    check_device(_OP, wx, {"R": R, "bias": bias, "reset": reset})


def _state(cell: Cell, wx: Tensor, given: tuple[Tensor, ...] | None) -> Tensor:
    """Return the checked initial state as one tensor (B, S, H, D) in the state's dtype."""
    (batch, _, heads, _, size), dtype, names = wx.shape, state_dtype(wx.dtype), cell.states
    if given is None:
        return wx.new_zeros((batch, len(names), heads, size), dtype=dtype)
    if not isinstance(given, tuple) or len(given) != len(names):
        found = f"tuple of {len(given)}" if isinstance(given, tuple) else type(given).__name__
        raise TypeError(f"{_OP}: initial_state is a {found}, expected a tuple of {cell.name}'s {', '.join(names)}")
    for field, part in zip(names, given, strict=True):
        name = f"initial_state {field!r}"
        check_dtype(_OP, name, part, (dtype, wx.dtype))
        check_shape(_OP, name, part, (batch, heads, size), "(B, H, D)")
        check_device(_OP, wx, {name: part})
    return torch.stack([part.to(dtype) for part in given], 1)


def _fake(
    wx: Tensor,
    R: Tensor,
    bias: Tensor | None,
    initial: Tensor,
    reset: Tensor | None,
    cell: str,
    save: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    batch, length, heads, _, size = wx.shape
    if backend == "chunked":
        saved = (-(-length // chunked.STEPS) if save else 0, *initial.shape[1:])
    else:
        saved = (length if save else 0, heads, find_cell(cell).planes, size)
    y = wx.new_empty((batch, length, heads, size))
    return y, initial.new_empty(initial.shape), initial.new_empty((batch, *saved))


def _fake_backward(wx: Tensor, R: Tensor, bias: Tensor | None, initial: Tensor, *others: Any) -> tuple[Tensor, ...]:
    dbias = R.new_empty(0) if bias is None else bias.new_empty(bias.shape)
    return wx.new_empty(wx.shape), R.new_empty(R.shape), dbias, initial.new_empty(initial.shape)


def _gradients(*saved: Any) -> tuple[Tensor | None, ...]:
    """Return the gradients by differentiating the reference form: for a gradient of the gradient."""
    arguments, (_, _, dy, dfinal) = saved[:6], saved[6:]
    return gradients_of(cell_scan_reference, arguments, (dy, dfinal))[:4]


def _with_weights(recursion: Callable[..., tuple[Tensor, ...]]) -> Callable[..., tuple[Tensor, ...]]:
    """Return the backward op from a backend's recursion, which leaves the gradients of R and bias to what follows it.

    Args:
        recursion: From (R, bias, initial, reset, cell, wx, y, trace, dy, dfinal) to the gradients of wx and of the
            initial state, in the state's dtype; and that of each step's recurrent product, where it is at hand.
    """

    def backward(
        wx: Tensor,
        R: Tensor,
        bias: Tensor | None,
        initial: Tensor,
        reset: Tensor | None,
        cell: str,
        y: Tensor,
        trace: Tensor,
        dy: Tensor | None,
        dfinal: Tensor | None,
    ) -> tuple[Tensor, ...]:
        dwx, dinitial, *rest = recursion(R, bias, initial, reset, cell, wx, y, trace, dy, dfinal)
        dproduct = rest[0] if rest else find_cell(cell).recurrent(dwx, trace)
        before = torch.cat([initial[:, :1], y[:, :-1].to(initial.dtype)], 1)
        if reset is not None:
            before = before.masked_fill(reset[..., None, None], 0)
        # (H, B L, G D) and (H, B L, D), as views.
        rows, columns = (x.flatten(3).flatten(0, 1).transpose(0, 1) for x in (dproduct.to(initial.dtype), before))
        dR = torch.bmm(rows.transpose(1, 2), columns).view(R.shape)
        dbias = R.new_empty(0) if bias is None else dproduct.sum((0, 1)).to(bias.dtype)
        return dwx.to(wx.dtype), dR.to(R.dtype), dbias, dinitial

    return backward


def _serve(name: str, form: Any, refuses: Callable[[Tensor], Reason], cells: Collection[str] | None = None) -> None:
    """Register a backend's form; ``cells`` are those that it knows, None for all."""
    register_kernel(_OP, name, Kernel(form.forward, _with_weights(form.backward), refuses))
    if cells is not None:
        _compiled[name] = cells


_ARGUMENTS = "Tensor wx, Tensor R, Tensor? bias, Tensor initial, Tensor? reset, str cell, "
_op = define_op(
    _OP,
    schema=f"({_ARGUMENTS}bool save, str backend) -> (Tensor, Tensor, Tensor)",
    backward_schema=(
        f"({_ARGUMENTS}Tensor y, Tensor trace, Tensor? dy, Tensor? dfinal, str backend) -> "
        "(Tensor, Tensor, Tensor, Tensor)"
    ),
    fake=_fake,
    fake_backward=_fake_backward,
    saved=lambda arguments, outputs: (*arguments[:6], outputs[0], outputs[2]),
    differentiable=tuple(range(4)),
    batched=(0, 3, 4),
    twice=_gradients,
    extras=1,
)
register_kernel(_OP, "reference", Kernel(cell_scan_reference, None, always))
_serve("chunked", chunked, always)
_serve("cpu", cpu, cpu_refuses, cpu.CELLS)
if find_spec("triton"):
    from . import triton

    _serve("triton", triton, triton.refuses, triton.CELLS)
