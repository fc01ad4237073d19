"""causal_conv1d: the short convolution in front of many recurrences, each channel over its own past."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from ..checks import FLOATS, check_device, check_dtype, check_length, check_shape, state_dtype
from ..cpu import refuses as cpu_refuses
from ..dispatch import Kernel, always, register_kernel, select
from ..library import define_op, gradients_of
from . import chunked, cpu
from .reference import causal_conv1d_reference

__all__ = ["causal_conv1d"]


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: Literal["none", "silu"] = "none",
    initial_state: Tensor | None = None,
    reset: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Convolve each channel over its own past, axis 1.

    ``y_t = bias + sum_{j=0}^{W-1} weight[W-1-j] x_{t-j}``, where x before the first step is the initial state; with
    ``activation="silu"`` the result is ``y_t / (1 + exp(-y_t))``.

    Args:
        x: Input, (B, L, C) float32, float64, bfloat16 or float16.
        weight: One filter per channel, (C, W), x's dtype or the state's, as bias; the last tap meets the present step,
            as in ``torch.nn.Conv1d``.
        bias: (C,), or None.
        activation: ``"none"`` or ``"silu"``.
        initial_state: The W - 1 inputs before the first, oldest first, (B, W - 1, C); zeros if None.
        reset: (B, L) bool; where True a new sequence starts, which sees no input before its own first.
        backend: Force ``cpu``, ``chunked`` or ``reference``; None chooses by device.

    Returns:
        y: (B, L, C), x's dtype.
        final_state: The last W - 1 inputs of the sequence now running, zeros where it is shorter, (B, W - 1, C);
            float32 for half types, else x's dtype.

    Raises:
        TypeError: A dtype is not supported or does not fit x's.
        ValueError: Shapes or devices do not fit, the length is 0, or the activation is unknown.
        BackendError: A forced backend cannot serve the call.

    Source:
        Gu and Dao, Mamba (2023), section 3.4 (the convolution of its block).

    Example:
        >>> import torch
        >>> from scanweave.kernels import causal_conv1d
        >>> y, last = causal_conv1d(torch.arange(1.0, 5.0).view(1, 4, 1), torch.tensor([[1.0, 10.0]]))
        >>> y.flatten().tolist(), last.flatten().tolist()
        ([10.0, 21.0, 32.0, 43.0], [4.0])
    """
    if activation not in ("none", "silu"):
        raise ValueError(f"causal_conv1d: activation is {activation!r}, expected 'none' or 'silu'")
    _check(x, weight, bias, initial_state, reset)
    chosen = select("causal_conv1d", x, backend)
    arguments = (x, weight, bias, initial_state, reset, activation == "silu")
    if chosen == "reference":
        return causal_conv1d_reference(*arguments)
    y, final = _op(*arguments, chosen)
    return y, final


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, initial_state: Tensor | None, reset: Tensor | None) -> None:
    op = "causal_conv1d"
    check_dtype(op, "x", x, FLOATS)
    if x.dim() != 3:
        raise ValueError(f"{op}: x has shape {tuple(x.shape)}, expected (B, L, C)")
    check_length(op, "x", x)
    own = (state_dtype(x.dtype), x.dtype)
    check_dtype(op, "weight", weight, own)
    if weight.dim() != 2 or weight.shape[0] != x.shape[2] or weight.shape[1] == 0:
        raise ValueError(
            f"{op}: weight has shape {tuple(weight.shape)}, expected (C, W) with C = {x.shape[2]} and W >= 1"
        )
    if bias is not None:
        check_dtype(op, "bias", bias, own)
        check_shape(op, "bias", bias, (x.shape[2],), "(C,)")
    if initial_state is not None:
        check_dtype(op, "initial_state", initial_state, own)
        check_shape(op, "initial_state", initial_state, (x.shape[0], weight.shape[1] - 1, x.shape[2]), "(B, W - 1, C)")
    if reset is not None:
        check_dtype(op, "reset", reset, (torch.bool,))
        check_shape(op, "reset", reset, tuple(x.shape[:2]), "(B, L)")
    check_device(op, x, {"weight": weight, "bias": bias, "initial_state": initial_state, "reset": reset})


def _fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    reset: Tensor | None,
    silu: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    shape = (x.shape[0], weight.shape[1] - 1, x.shape[2])
    return x.new_empty(x.shape), x.new_empty(shape, dtype=state_dtype(x.dtype))


def _fake_backward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    reset: Tensor | None,
    silu: bool,
    dy: Tensor | None,
    dfinal: Tensor | None,
    backend: str,
) -> tuple[Tensor, ...]:
    dtype = state_dtype(x.dtype)
    dbias = x.new_empty(0, dtype=dtype) if bias is None else bias.new_empty(bias.shape)
    state = x.new_empty(0 if initial_state is None else initial_state.shape, dtype=dtype)
    return x.new_empty(x.shape), weight.new_empty(weight.shape), dbias, state


def _gradients(*saved: Any) -> tuple[Tensor | None, ...]:
    """Return the gradients by differentiating the chunked form: for a gradient of the gradient."""
    arguments, (dy, dfinal) = saved[:6], saved[6:]
    return gradients_of(chunked.forward, arguments, (dy, dfinal))[:4]


_ARGUMENTS = "Tensor x, Tensor weight, Tensor? bias, Tensor? initial_state, Tensor? reset, bool silu, "
_op = define_op(
    "causal_conv1d",
    schema=f"({_ARGUMENTS}str backend) -> (Tensor, Tensor)",
    backward_schema=f"({_ARGUMENTS}Tensor? dy, Tensor? dfinal, str backend) -> (Tensor, Tensor, Tensor, Tensor)",
    fake=_fake,
    fake_backward=_fake_backward,
    saved=lambda arguments, outputs: arguments[:6],
    differentiable=tuple(range(4)),
    batched=(0, 3, 4),
    twice=_gradients,
)
register_kernel("causal_conv1d", "reference", Kernel(causal_conv1d_reference, None, always))
register_kernel("causal_conv1d", "chunked", Kernel(chunked.forward, chunked.backward, always))
register_kernel("causal_conv1d", "cpu", Kernel(cpu.forward, cpu.backward, cpu_refuses))
