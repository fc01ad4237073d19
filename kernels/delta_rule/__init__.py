"""delta_rule: a matrix state per head that each step corrects, under DeltaNet, Gated DeltaNet and DeltaProduct."""

from __future__ import annotations

from importlib.util import find_spec

from torch import Tensor

from ..checks import check_dtype
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
from .reference import delta_rule_reference

__all__ = ["delta_rule"]


def delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None = None,
    *,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    reset: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Run the (gated) delta rule over axis 1: a state that learns online which value belongs to which key.

    ``S <- exp(log_decay_t) S_{t-1}``, ``S_t = S + beta_t k_t (v_t - S^T k_t)^T`` and ``o_t = scale S_t^T q_t``, S a K x
    V matrix per head. With n keys per step (DeltaProduct) the state is decayed once, corrected n times and read once.

    Args:
        q: Queries, (B, L, H, K) float32, float64, bfloat16 or float16.
        k: Keys, (B, L, H, K) or (B, L, n, H, K), q's dtype, used as given: the state stays bounded where |k| <= 1.
        v: Values, (B, L, H, V) or (B, L, n, H, V), q's dtype.
        beta: Strengths, (B, L, H) or (B, L, n, H), in [0, 1], or [0, 2] for eigenvalues in [-1, 1]. q's dtype or
            float32.
        log_decay: Logarithm of the decay, (B, L, H), at most 0, -inf where the state is dropped; no decay if None. q's
            dtype or float32.
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
        Yang et al., Parallelizing linear transformers with the delta rule over sequence length (2024), equation 4;
        decay: Yang, Kautz and Hatamizadeh, Gated delta networks (2024), equation 10; n keys per step: Siems et al.,
        DeltaProduct (2025), section 3; beta up to 2: Grazzi et al., Unlocking state-tracking in linear RNNs through
        negative eigenvalues (2024), section 4.

    Example:
        >>> import torch
        >>> from scanweave.kernels import delta_rule
        >>> one = torch.ones(1, 3, 1, 1)
        >>> o, state = delta_rule(one, one, one, torch.full((1, 3, 1), 0.5))
        >>> o.flatten().tolist()
        [0.5, 0.75, 0.875]
    """
    op = "delta_rule"
    check_query(op, q)
    check_dtype(op, "k", k, (q.dtype,))
    check_dtype(op, "v", v, (q.dtype,))
    check_dtype(op, "beta", beta, gate_dtypes(q))
    if k.dim() == 4 and v.dim() == 4 and beta.dim() == 3:
        k, v, beta = k.unsqueeze(2), v.unsqueeze(2), beta.unsqueeze(2)
    _check(q, k, v, beta, log_decay, initial_state, reset)
    chosen = select(op, q, backend)
    factor = q.shape[3] ** -0.5 if scale is None else scale
    arguments = (q, k, v, beta, log_decay, as_state(initial_state, q), reset, factor)
    if chosen == "reference":
        return delta_rule_reference(*arguments)
    o, final, _ = _op(*arguments, False, chosen)
    return o, final


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None,
    initial_state: Tensor | None,
    reset: Tensor | None,
) -> None:
    op = "delta_rule"
    batch, length, heads, keys = q.shape
    if k.dim() != 5 or k.shape[2] == 0:
        raise ValueError(
            f"{op}: k has shape {tuple(k.shape)}, v {tuple(v.shape)} and beta {tuple(beta.shape)}, expected "
            "(B, L, H, K), (B, L, H, V) and (B, L, H), or (B, L, n, H, K), (B, L, n, H, V) and (B, L, n, H) with n >= 1"
        )
    many, width = k.shape[2], value_width(op, v, q, 5)
    arguments = (
        ("k", k, (batch, length, many, heads, keys), "(B, L, n, H, K)", (q.dtype,)),
        ("v", v, (batch, length, many, heads, width), "(B, L, n, H, V)", (q.dtype,)),
        ("beta", beta, (batch, length, many, heads), "(B, L, n, H)", gate_dtypes(q)),
        ("log_decay", log_decay, (batch, length, heads), "(B, L, H)", gate_dtypes(q)),
    )
    check_arguments(op, q, arguments, width, initial_state, reset)


_op = define_matrix_op(
    "delta_rule",
    "Tensor q, Tensor k, Tensor v, Tensor beta, Tensor? log_decay",
    delta_rule_reference,
    batched=range(7),
)
register_kernel("delta_rule", "reference", Kernel(delta_rule_reference, None, always))
register_kernel("delta_rule", "chunked", Kernel(chunked.forward, chunked.backward, always))
register_kernel("delta_rule", "cpu", Kernel(cpu.forward, cpu.backward, cpu_refuses))
if find_spec("triton"):
    from . import triton

    register_kernel("delta_rule", "triton", Kernel(triton.forward, triton.backward, triton.refuses))
