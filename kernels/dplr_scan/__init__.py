"""dplr_scan: a matrix state per head whose transition is diagonal plus rank one, under RWKV-7."""

from __future__ import annotations

from importlib.util import find_spec

from torch import Tensor

from ..cpu import refuses as cpu_refuses
from ..dispatch import Kernel, always, register_kernel, select
from ..matrix_state import (
    as_state,
    check_arguments,
    check_query,
    gate_dtypes,
    value_width,
)
from ..matrix_state.op import define_matrix_op
from . import chunked, cpu
from .reference import dplr_scan_reference

__all__ = ["dplr_scan"]


def dplr_scan(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    log_decay: Tensor,
    *,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    reset: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Run a recurrence with a diagonal plus rank-one transition over axis 1.

    ``S_t = Diag(exp(log_decay_t)) S_{t-1} + b_t (a_t^T S_{t-1}) + k_t v_t^T`` and ``o_t = scale S_t^T q_t``, S a K x V
    matrix per head. RWKV-7 has ``a = -kappa``, ``b = kappa * iclr`` with |kappa| = 1, and ``scale = 1``.

    Args:
        q: Queries, (B, L, H, K) float32, float64, bfloat16 or float16.
        k: Keys, (B, L, H, K), q's dtype.
        v: Values, (B, L, H, V), q's dtype.
        a: What the rank-one term reads from the state before its decay, (B, L, H, K), q's dtype.
        b: Where it writes what it read, (B, L, H, K), q's dtype.
        log_decay: Logarithm of the decay, (B, L, H, K), at most 0, -inf where a row is dropped. q's dtype or float32.
        scale: Factor of the output; 1 / sqrt(K) if None.
        initial_state: State before the first step, (B, H, K, V); zero if None.
        reset: (B, L) bool; where True the state before that step counts as zero: the first step of each sequence of a
            packed batch.
        backend: Force ``triton``, ``cpu``, ``chunked`` or ``reference``; None chooses by device.

    Returns:
        o: (B, L, H, V), q's dtype.
        final_state: The state after the last step, (B, H, K, V); float32 for half types, else q's dtype.

    Raises:
        TypeError: A dtype is not supported or does not fit q's.
        ValueError: Shapes or devices do not fit, the length is 0, or (checked on the CPU) log_decay is NaN or above 0.
        BackendError: A forced backend cannot serve the call.

    Source:
        Peng et al., RWKV-7 "Goose" with expressive dynamic state evolution (2025), equations 16 and 17.

    Example:
        >>> import torch
        >>> from scanweave.kernels import dplr_scan
        >>> one = torch.ones(1, 3, 1, 1)
        >>> o, state = dplr_scan(one, one, one, -one, 0.5 * one, 0 * one)
        >>> o.flatten().tolist()
        [1.0, 1.5, 1.75]
    """
    op = "dplr_scan"
    check_query(op, q)
    width, shape = value_width(op, v, q), tuple(q.shape)
    arguments = (
        *((name, x, shape, "(B, L, H, K)", (q.dtype,)) for name, x in (("k", k), ("a", a), ("b", b))),
        ("v", v, (*shape[:3], width), "(B, L, H, V)", (q.dtype,)),
        ("log_decay", log_decay, shape, "(B, L, H, K)", gate_dtypes(q)),
    )
    check_arguments(op, q, arguments, width, initial_state, reset)
    chosen = select(op, q, backend)
    factor = shape[3] ** -0.5 if scale is None else scale
    inputs = (q, k, v, a, b, log_decay, as_state(initial_state, q), reset, factor)
    if chosen == "reference":
        return dplr_scan_reference(*inputs)
    o, final, _ = _op(*inputs, False, chosen)
    return o, final


_op = define_matrix_op(
    "dplr_scan",
    "Tensor q, Tensor k, Tensor v, Tensor a, Tensor b, Tensor log_decay",
    dplr_scan_reference,
    batched=range(8),
)
register_kernel("dplr_scan", "reference", Kernel(dplr_scan_reference, None, always))
register_kernel("dplr_scan", "chunked", Kernel(chunked.forward, chunked.backward, always))
register_kernel("dplr_scan", "cpu", Kernel(cpu.forward, cpu.backward, cpu_refuses))
if find_spec("triton"):
    from . import triton

    register_kernel("dplr_scan", "triton", Kernel(triton.forward, triton.backward, triton.refuses))
