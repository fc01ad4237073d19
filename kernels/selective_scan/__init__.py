"""selective_scan: Mamba's recurrence, a diagonal state per channel that the data steers."""

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
from .chunked import CHUNK
from .orders import backward_by_steps, forward_by_steps
from .reference import selective_scan_reference

__all__ = ["selective_scan"]

EIGENVALUES = ("positive", "signed")
_reference = forward_by_steps(selective_scan_reference)


def selective_scan(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    *,
    dt_softplus: bool = True,
    eigenvalues: str = "positive",
    initial_state: Tensor | None = None,
    reset: Tensor | None = None,
    orders: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Run Mamba's selective state space model over axis 1.

    ``delta_t = softplus(dt_t + dt_bias)``, ``h_t = a_t * h_{t-1} + delta_t B_t u_t`` with ``a_t = exp(delta_t A)``,
    ``y_t = C_t . h_t + D u_t``, and with a gate ``y_t * silu(z_t)``; each channel has N states of its own. With
    ``orders``, t is a place, and the step before it is the one at the place that its group visits before.

    Args:
        u: Input, (B, L, C) or (B, L, G, C / G), float32, float64, bfloat16 or float16. Groups may share memory: a view
            that is expanded over G is read as it lies.
        dt: Step size before bias and softplus, u's shape and dtype.
        A: Continuous-time decay, (C, N), finite; negative values decay. u's dtype or the state's, as D and dt_bias.
        B: Input weights, (B, L, N) shared by all channels or (B, L, G, N) for G groups of C / G neighbouring channels.
        C: Output weights, shaped as B.
        D: Skip weights, (C,).
        z: Gate, u's shape.
        dt_bias: Added to dt, (C,).
        dt_softplus: Pass ``dt + dt_bias`` through softplus; else it is the step size itself.
        eigenvalues: ``"positive"``: ``a = exp(delta A)`` in (0, 1) for negative A; ``"signed"``:
            ``a = 2 exp(delta A) - 1`` in (-1, 1), which lets the state flip its sign and so track parity.
        initial_state: State before the first step, (B, C, N); zero if None.
        reset: (B, L) bool; where True the state before that step counts as zero: the first step of each sequence of a
            packed batch.
        orders: (G, L) int64, each row a permutation of 0 to L - 1: ``orders[g, i]`` is where group g is at its step i,
            what it reads there of u, dt, B, C and z, and where it writes y. All of a grid's readings in one call; not
            together with ``reset``.
        backend: Force ``triton``, ``cpu``, ``chunked`` or ``reference``; None chooses by device.

    Returns:
        y: As u.
        final_state: The state after the last step, (B, C, N); float32 for half types, else u's dtype.

    Raises:
        TypeError: A dtype is not supported or does not fit u's.
        ValueError: Shapes or devices do not fit, the length is 0, ``eigenvalues`` is neither word, ``orders`` and
            ``reset`` are both given, or (checked on the CPU) A is not finite, or a final state is not because dt is
            not, or an order does not visit each place once.
        BackendError: A forced backend cannot serve the call.

    Source:
        Gu and Dao, Mamba (2023), equations 2a, 2b and 4, algorithm 2; signed eigenvalues: Grazzi et al., Unlocking
        state-tracking in linear RNNs through negative eigenvalues (2024), section 4.

    Example:
        >>> import torch
        >>> from scanweave.kernels import selective_scan
        >>> one = torch.ones(1, 3, 1)
        >>> y, state = selective_scan(one, one, torch.tensor([[-0.6931472]]), one, one, dt_softplus=False)
        >>> [round(v, 4) for v in y.flatten().tolist()]
        [1.0, 1.5, 1.75]
    """
    if eigenvalues not in EIGENVALUES:
        raise ValueError(f"selective_scan: eigenvalues is {eigenvalues!r}, expected one of {', '.join(EIGENVALUES)}")
    B, C = _with_groups("B", B), _with_groups("C", C)
    _check(u, dt, A, B, C, D, z, dt_bias, initial_state, reset, orders)
    if initial_state is not None and initial_state.dtype != state_dtype(u.dtype):
        initial_state = initial_state.to(state_dtype(u.dtype))
    signed, chosen = eigenvalues == "signed", select("selective_scan", u, backend)
    arguments = (u, dt, A, B, C, D, z, dt_bias, initial_state, reset, orders, dt_softplus, signed)
    if chosen == "reference":
        y, final = _reference(*arguments)
    else:
        y, final, _ = _op(*arguments, False, chosen)
    return y, final


def _with_groups(name: str, x: Tensor) -> Tensor:
    """Return (B, L, G, N); what all channels share is one group."""
    if isinstance(x, Tensor) and x.dim() != 3:
        return x
    check_dtype("selective_scan", name, x, FLOATS)
    return x.unsqueeze(2)


def _check(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    initial_state: Tensor | None,
    reset: Tensor | None,
    orders: Tensor | None,
) -> None:
    op = "selective_scan"
    check_dtype(op, "u", u, FLOATS)
    parameter = (state_dtype(u.dtype), u.dtype)
    if u.dim() not in (3, 4):
        raise ValueError(f"{op}: u has shape {tuple(u.shape)}, expected (B, L, C) or (B, L, G, C / G)")
    check_length(op, "u", u)
    batch, length, channels = u.shape[0], u.shape[1], u.shape[2] * (u.shape[3] if u.dim() == 4 else 1)
    layout = "(B, L, C)" if u.dim() == 3 else "(B, L, G, C / G)"
    check_dtype(op, "A", A, parameter)
    if A.dim() != 2 or A.shape[0] != channels or A.shape[1] == 0:
        raise ValueError(f"{op}: A has shape {tuple(A.shape)}, expected (C, N) with C = {channels} and N >= 1")
    if B.dim() != 4 or B.shape[2] == 0 or channels % B.shape[2]:
        raise ValueError(
            f"{op}: B has shape {tuple(B.shape)}, expected (B, L, N) or (B, L, G, N) "
            f"where G divides the {channels} channels"
        )
    if u.dim() == 4 and u.shape[2] != B.shape[2]:
        raise ValueError(f"{op}: u has {u.shape[2]} groups, expected B's {B.shape[2]}")
    grouped = (batch, length, B.shape[2], A.shape[1])
    for name, sequence, shape, axes in (
        ("dt", dt, tuple(u.shape), layout),
        ("B", B, grouped, "(B, L, G, N)"),
        ("C", C, grouped, "(B, L, G, N)"),
        ("z", z, tuple(u.shape), layout),
    ):
        if sequence is not None:
            check_dtype(op, name, sequence, (u.dtype,))
            check_shape(op, name, sequence, shape, axes)
    for name, vector in (("D", D), ("dt_bias", dt_bias)):
        if vector is not None:
            check_dtype(op, name, vector, parameter)
            check_shape(op, name, vector, (channels,), "(C,)")
    if initial_state is not None:
        check_dtype(op, "initial_state", initial_state, parameter)
        check_shape(op, "initial_state", initial_state, (batch, *A.shape), "(B, C, N)")
    if reset is not None:
        check_dtype(op, "reset", reset, (torch.bool,))
        check_shape(op, "reset", reset, (batch, length), "(B, L)")
    if orders is not None:
        check_dtype(op, "orders", orders, (torch.int64,))
        check_shape(op, "orders", orders, (B.shape[2], length), "(G, L)")
        if reset is not None:
            raise ValueError(f"{op}: reset is given beside orders, expected one of them: sequences start in one order")
    check_device(
        op,
        u,
        {"dt": dt, "A": A, "B": B, "C": C, "D": D, "z": z, "dt_bias": dt_bias}
        | {"initial_state": initial_state, "reset": reset, "orders": orders},
    )


def _fake(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    initial_state: Tensor | None,
    reset: Tensor | None,
    orders: Tensor | None,
    dt_softplus: bool,
    signed: bool,
    save: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    dtype, (batch, length), (channels, n) = state_dtype(u.dtype), u.shape[:2], A.shape
    chunks = (length + CHUNK - 1) // CHUNK
    before = u.new_empty((batch, chunks if save else 0, n, channels), dtype=dtype)
    return u.new_empty(u.shape), u.new_empty((batch, channels, n), dtype=dtype), before


def _fake_backward(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    initial_state: Tensor | None,
    reset: Tensor | None,
    orders: Tensor | None,
    dt_softplus: bool,
    signed: bool,
    before: Tensor,
    dy: Tensor | None,
    dfinal: Tensor | None,
    backend: str,
) -> tuple[Tensor, ...]:
    like = [u.new_empty(0) if x is None else x.new_empty(x.shape) for x in (u, dt, A, B, C, D, z, dt_bias)]
    return *like, before.new_empty((u.shape[0], *A.shape))


def _gradients(*saved: Any) -> tuple[Tensor | None, ...]:
    """Return the gradients by differentiating the reference form: for a gradient of the gradient."""
    arguments, (_, dy, dfinal) = saved[:13], saved[13:]
    return gradients_of(_reference, arguments, (dy, dfinal))[:9]


_ARGUMENTS = (
    "Tensor u, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? dt_bias, Tensor? initial_state, "
    "Tensor? reset, Tensor? orders, bool dt_softplus, bool signed, "
)
_op = define_op(
    "selective_scan",
    schema=f"({_ARGUMENTS}bool save, str backend) -> (Tensor, Tensor, Tensor)",
    backward_schema=(
        f"({_ARGUMENTS}Tensor before, Tensor? dy, Tensor? dfinal, str backend) -> ({', '.join(['Tensor'] * 9)})"
    ),
    fake=_fake,
    fake_backward=_fake_backward,
    saved=lambda arguments, outputs: (*arguments[:13], outputs[2]),
    differentiable=tuple(range(9)),
    batched=(0, 1, 3, 4, 6, 8, 9),
    twice=_gradients,
    extras=1,
)
register_kernel("selective_scan", "reference", Kernel(_reference, None, always))
_chunked = Kernel(forward_by_steps(chunked.forward), backward_by_steps(chunked.backward), always)
register_kernel("selective_scan", "chunked", _chunked)
register_kernel("selective_scan", "cpu", Kernel(cpu.forward, cpu.backward, cpu_refuses))
if find_spec("triton"):
    from . import triton

    _triton = Kernel(forward_by_steps(triton.forward), backward_by_steps(triton.backward), triton.refuses)
    register_kernel("selective_scan", "triton", _triton)
