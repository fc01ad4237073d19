"""linear_scan: ``h_t = a_t * h_{t-1} + b_t``, the recurrence under S5, LRU, minGRU, minLSTM, HGRN and ConvS5."""

from __future__ import annotations

import math
from functools import partial
from importlib.util import find_spec

import torch
from torch import Tensor

from ..checks import COMPLEX, FLOATS, check_device, check_dtype, check_length, check_shape, state_dtype
from ..cpu import refuses as cpu_refuses
from ..dispatch import Kernel, always, register_kernel, select
from ..library import define_op
from .adjoint import gradients
from .chunked import linear_scan_chunked, linear_scan_chunked_backward
from .cpu import linear_scan_cpu, linear_scan_cpu_backward
from .reference import linear_scan_reference

__all__ = ["linear_scan"]


def linear_scan(
    a: Tensor,
    b: Tensor,
    *,
    reverse: bool = False,
    initial_state: Tensor | None = None,
    reset: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Run the elementwise linear recurrence over axis 1.

    ``h_t = a_t * h_{t-1} + b_t``, for t = 1..L (``reverse=True``: ``h_t = a_t * h_{t+1} + b_t``, from L down to 1).

    Args:
        a: Decay, (B, L, ...) float32, float64, bfloat16, float16, complex64 or complex128; it may broadcast to b.
        b: Input, (B, L, ...), same dtype as a.
        reverse: Run from the last step to the first.
        initial_state: State before the first step taken, (B, ...); zero if None.
        reset: (B, L) bool; where True the state restarts: ``h_t = b_t``. It starts each sequence of a packed batch
            (with ``reverse``, the step that a sequence ends with).
        backend: Force ``triton``, ``cpu``, ``chunked`` or ``reference``; None chooses by device.

    Returns:
        y: All states, (B, L, ...), in b's dtype.
        final_state: The state after the last step taken, (B, ...); float32 for half types, else b's dtype.

    Raises:
        TypeError: A dtype is not supported, or a and b differ in it.
        ValueError: Shapes or devices do not fit, the length is 0, or a is not finite (seen by ``cpu``, and by
            ``chunked`` on the CPU).
        BackendError: A forced backend cannot serve the call.

    Source:
        Blelloch, Prefix sums and their applications (1990), section 1.4; Smith et al., S5 (2023), equation 2;
        Martin and Cundy, Parallelizing linear recurrent neural nets (2018), section 2.

    Example:
        >>> import torch
        >>> from scanweave.kernels import linear_scan
        >>> y, state = linear_scan(torch.full((1, 4, 1), 0.5), torch.ones(1, 4, 1))
        >>> y.flatten().tolist()
        [1.0, 1.5, 1.75, 1.875]
    """
    _check(a, b, initial_state, reset)
    shape = b.shape
    width = math.prod(shape[2:])  # reshape finds no -1 in an empty batch
    h = None if initial_state is None else initial_state.reshape(shape[0], width).to(state_dtype(b.dtype))
    plain = len(shape) == 3  # nothing to flatten: views of tensors cost as much as a small scan
    a3 = a if plain and a.dim() == 3 and a.shape[2] == shape[2] else _flatten(a, shape)
    b3 = b if plain else b.reshape(shape[0], shape[1], -1)
    chosen = select("linear_scan", b, backend)
    if chosen == "reference":
        y, final = linear_scan_reference(a3, b3, h, reset, reverse)
    else:
        y, final = _op(a3, b3, h, reset, reverse, chosen)
    return (y, final) if plain else (y.view(shape), final.view(shape[0], *shape[2:]))


def _flatten(a: Tensor, shape: torch.Size) -> Tensor:
    """Return a as (B or 1, L or 1, C): shared over the batch or over time it stays small, and so does its gradient."""
    a = a.reshape((1,) * (len(shape) - a.dim()) + a.shape)
    return a.expand(a.shape[0], a.shape[1], *shape[2:]).reshape(a.shape[0], a.shape[1], -1)


def _check(a: Tensor, b: Tensor, initial_state: Tensor | None, reset: Tensor | None) -> None:
    op = "linear_scan"
    check_dtype(op, "a", a, FLOATS + COMPLEX)
    check_dtype(op, "b", b, (a.dtype,))
    if b.dim() < 2:
        raise ValueError(f"{op}: b has shape {tuple(b.shape)}, expected (B, L, ...)")
    check_length(op, "b", b)
    # Shapes of different length first: comparing their entries would keep an exported program from some batches.
    if a.dim() != b.dim() or a.shape != b.shape:
        try:
            fits = torch.broadcast_shapes(a.shape, b.shape) == b.shape
        except RuntimeError:
            fits = False
        if not fits:
            raise ValueError(
                f"{op}: a has shape {tuple(a.shape)}, expected one that broadcasts to b's {tuple(b.shape)}"
            )
    check_device(op, b, {"a": a, "initial_state": initial_state, "reset": reset})
    if initial_state is not None:
        check_dtype(op, "initial_state", initial_state, COMPLEX if b.is_complex() else FLOATS)
        check_shape(op, "initial_state", initial_state, (b.shape[0], *b.shape[2:]), "(B, ...)")
    if reset is not None:
        check_shape(op, "reset", reset, tuple(b.shape[:2]), "(B, L)")
        check_dtype(op, "reset", reset, (torch.bool,))


def _fake(
    a: Tensor, b: Tensor, initial_state: Tensor | None, reset: Tensor | None, reverse: bool, backend: str
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(b, memory_format=torch.contiguous_format), b.new_empty(
        (b.shape[0], b.shape[2]), dtype=state_dtype(b.dtype)
    )


def _fake_backward(
    a: Tensor,
    y: Tensor,
    initial_state: Tensor | None,
    reset: Tensor | None,
    reverse: bool,
    dy: Tensor | None,
    dfinal: Tensor | None,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    state = y.new_empty((y.shape[0], y.shape[2]), dtype=state_dtype(y.dtype))
    return torch.empty_like(a), torch.empty_like(y), state


def _differentiable_scan(
    a: Tensor, b: Tensor, initial_state: Tensor | None, reset: Tensor | None, reverse: bool
) -> tuple[Tensor, Tensor]:
    return linear_scan(a, b, reverse=reverse, initial_state=initial_state, reset=reset)


_op = define_op(
    "linear_scan",
    schema="(Tensor a, Tensor b, Tensor? initial_state, Tensor? reset, bool reverse, str backend) -> (Tensor, Tensor)",
    backward_schema=(
        "(Tensor a, Tensor y, Tensor? initial_state, Tensor? reset, bool reverse, Tensor? dy, Tensor? dfinal, "
        "str backend) -> (Tensor, Tensor, Tensor)"
    ),
    fake=_fake,
    fake_backward=_fake_backward,
    saved=lambda args, outputs: (args[0], outputs[0], args[2], args[3], args[4]),
    differentiable=(0, 1, 2),
    batched=(0, 1, 2, 3),
    twice=partial(gradients, _differentiable_scan),
)
register_kernel("linear_scan", "reference", Kernel(linear_scan_reference, None, always))
register_kernel("linear_scan", "chunked", Kernel(linear_scan_chunked, linear_scan_chunked_backward, always))
register_kernel("linear_scan", "cpu", Kernel(linear_scan_cpu, linear_scan_cpu_backward, cpu_refuses))
if find_spec("triton"):
    from . import triton as _triton

    register_kernel(
        "linear_scan",
        "triton",
        Kernel(_triton.linear_scan_triton, _triton.linear_scan_triton_backward, _triton.refuses),
    )
