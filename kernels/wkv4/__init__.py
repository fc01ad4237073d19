"""wkv4: RWKV-4's recurrence, an average of values whose weights fade with time."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..checks import FLOATS, check_device, check_dtype, check_length, check_shape, state_dtype
from ..cpu import refuses as cpu_refuses
from ..dispatch import Kernel, always, register_kernel, select
from ..library import define_op, gradients_of
from . import chunked, cpu
from .chunks import STEPS
from .reference import wkv4_reference

__all__ = ["WKV4State", "wkv4"]


class WKV4State(NamedTuple):
    """The weighted sums so far, both scaled by ``exp(-maximum)``; before any step 0, 0 and -inf."""

    numerator: Tensor
    denominator: Tensor
    maximum: Tensor


def wkv4(
    k: Tensor,
    v: Tensor,
    w: Tensor,
    u: Tensor,
    *,
    initial_state: WKV4State | tuple[Tensor, Tensor, Tensor] | None = None,
    reset: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, WKV4State]:
    """Run RWKV-4's recurrence over axis 1.

    ``y_t = (sum_{i<t} e^(-(t-1-i) w + k_i) v_i + e^(u + k_t) v_t) / (sum_{i<t} e^(-(t-1-i) w + k_i) + e^(u + k_t))``,
    each channel by itself. No exponential exceeds 1, so that large keys do no harm.

    Args:
        k: Logarithms of the weights, (B, L, C) float32, float64, bfloat16 or float16, finite.
        v: Values, (B, L, C), k's dtype.
        w: Rate of decay, (C,), at least 0: a weight falls by ``exp(-w)`` per step. k's dtype or the state's, as u.
        u: Bonus of the current step, (C,).
        initial_state: State before the first step, as a call returned it: three tensors (B, C). Empty if None.
        reset: (B, L) bool; where True the state before that step counts as empty: the first step of each sequence of a
            packed batch.
        backend: Force ``triton``, ``cpu``, ``chunked`` or ``reference``; None chooses by device.

    Returns:
        y: (B, L, C), k's dtype.
        final_state: The state after the last step; float32 for half types, else k's dtype.

    Raises:
        TypeError: A dtype is not supported or does not fit k's, or ``initial_state`` is not three tensors.
        ValueError: Shapes or devices do not fit, the length is 0, or (checked on the CPU) w is negative or not finite.
        BackendError: A forced backend cannot serve the call.

    Source:
        Peng et al., RWKV: reinventing RNNs for the Transformer era (2023), equations 16 to 19 and appendix D.

    Example:
        >>> import torch
        >>> from scanweave.kernels import wkv4
        >>> v = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1)
        >>> y, state = wkv4(torch.zeros(1, 3, 1), v, torch.tensor([0.6931472]), torch.zeros(1))
        >>> [round(x, 4) for x in y.flatten().tolist()]
        [1.0, 0.5, 0.2]
    """
    _check(k, v, w, u, reset)
    arguments = (k, v, w, u, _state(k, initial_state), reset)
    chosen = select("wkv4", k, backend)
    if chosen == "reference":
        y, final = wkv4_reference(*arguments)
    else:
        y, final, _ = _op(*arguments, False, chosen)
    return y, WKV4State(*final.unbind(1))


def _check(k: Tensor, v: Tensor, w: Tensor, u: Tensor, reset: Tensor | None) -> None:
    op = "wkv4"
    check_dtype(op, "k", k, FLOATS)
    if k.dim() != 3:
        raise ValueError(f"{op}: k has shape {tuple(k.shape)}, expected (B, L, C)")
    check_length(op, "k", k)
    check_dtype(op, "v", v, (k.dtype,))
    check_shape(op, "v", v, tuple(k.shape), "(B, L, C)")
    for name, vector in (("w", w), ("u", u)):
        check_dtype(op, name, vector, (state_dtype(k.dtype), k.dtype))
        check_shape(op, name, vector, (k.shape[2],), "(C,)")
    if reset is not None:
        check_dtype(op, "reset", reset, (torch.bool,))
        check_shape(op, "reset", reset, tuple(k.shape[:2]), "(B, L)")
    check_device(op, k, {"v": v, "w": w, "u": u, "reset": reset})


def _state(k: Tensor, given: tuple[Tensor, Tensor, Tensor] | None) -> Tensor | None:
    """Return the checked initial state as one tensor (B, 3, C) in the state's dtype."""
    if given is None:
        return None
    if not isinstance(given, tuple) or len(given) != 3:
        raise TypeError(f"wkv4: initial_state is a {type(given).__name__}, expected the three tensors of WKV4State")
    dtype = state_dtype(k.dtype)
    for field, part in zip(WKV4State._fields, given, strict=True):
        name = f"initial_state.{field}"
        check_dtype("wkv4", name, part, (dtype, k.dtype))
        check_shape("wkv4", name, part, (k.shape[0], k.shape[2]), "(B, C)")
        check_device("wkv4", k, {name: part})
    return torch.stack([part.to(dtype) for part in given], 1)


def _fake(
    k: Tensor,
    v: Tensor,
    w: Tensor,
    u: Tensor,
    initial_state: Tensor | None,
    reset: Tensor | None,
    save: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    dtype, (batch, length, channels) = state_dtype(k.dtype), k.shape
    before = k.new_empty((batch, (length + STEPS - 1) // STEPS if save else 0, 3, channels), dtype=dtype)
    return k.new_empty(k.shape), k.new_empty((batch, 3, channels), dtype=dtype), before


def _fake_backward(
    k: Tensor,
    v: Tensor,
    w: Tensor,
    u: Tensor,
    initial_state: Tensor | None,
    reset: Tensor | None,
    before: Tensor,
    dy: Tensor | None,
    dfinal: Tensor | None,
    backend: str,
) -> tuple[Tensor, ...]:
    state = before.new_empty(0 if initial_state is None else initial_state.shape)
    return *(x.new_empty(x.shape) for x in (k, v, w, u)), state


def _gradients(*saved: Any) -> tuple[Tensor | None, ...]:
    """Return the gradients by differentiating the reference form: for a gradient of the gradient."""
    arguments, (_, dy, dfinal) = saved[:6], saved[6:]
    return gradients_of(wkv4_reference, arguments, (dy, dfinal))[:5]


_ARGUMENTS = "Tensor k, Tensor v, Tensor w, Tensor u, Tensor? initial_state, Tensor? reset, "
_op = define_op(
    "wkv4",
    schema=f"({_ARGUMENTS}bool save, str backend) -> (Tensor, Tensor, Tensor)",
    backward_schema=(
        f"({_ARGUMENTS}Tensor before, Tensor? dy, Tensor? dfinal, str backend) -> ({', '.join(['Tensor'] * 5)})"
    ),
    fake=_fake,
    fake_backward=_fake_backward,
    saved=lambda arguments, outputs: (*arguments[:6], outputs[2]),
    differentiable=tuple(range(5)),
    batched=(0, 1, 4, 5),
    twice=_gradients,
    extras=1,
)
register_kernel("wkv4", "reference", Kernel(wkv4_reference, None, always))
register_kernel("wkv4", "chunked", Kernel(chunked.forward, chunked.backward, always))
register_kernel("wkv4", "cpu", Kernel(cpu.forward, cpu.backward, cpu_refuses))
if find_spec("triton"):
    from . import triton

    register_kernel("wkv4", "triton", Kernel(triton.forward, triton.backward, triton.refuses))
