"""gated_linear_attention: a decaying matrix state per head, under RetNet, GLA, Mamba-2, RWKV-6 and the mLSTM."""

from __future__ import annotations

from importlib.util import find_spec

from torch import Tensor

from ..checks import check_dtype, state_dtype
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
from .reference import gated_linear_attention_reference

__all__ = ["gated_linear_attention"]


def gated_linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    *,
    scale: float | None = None,
    bonus: Tensor | None = None,
    initial_state: Tensor | None = None,
    reset: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Run linear attention with a decaying state over axis 1.

    ``S_t = Diag(exp(log_decay_t)) S_{t-1} + k_t v_t^T`` and ``o_t = scale S_t^T q_t``, S a K x V matrix per head; with
    a bonus the step's own key and value are read apart: ``o_t = scale (S_{t-1} + Diag(bonus) k_t v_t^T)^T q_t``.

    Args:
        q: Queries, (B, L, H, K) float32, float64, bfloat16 or float16.
        k: Keys, (B, L, H, K), q's dtype. Heads may share them: an expanded axis is read as it is.
        v: Values, (B, L, H, V), q's dtype.
        log_decay: Logarithm of the decay, at most 0, -inf where the state is dropped: (H,) constant, (B, L, H) one per
            head, or (B, L, H, K) one per row of the state. q's dtype or float32.
        scale: Factor of the output; 1 / sqrt(K) if None.
        bonus: Weight of the step's own key, (H, K), q's dtype or the state's.
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
        Yang et al., Gated linear attention transformers with hardware-efficient training (2023), equation 3; constant
        decays: Sun et al., Retentive network (2023), equation 6; one decay per head: Dao and Gu, Transformers are SSMs
        (2024), section 3; bonus: Peng et al., Eagle and Finch (2024), equation 19.

    Example:
        >>> import torch
        >>> from scanweave.kernels import gated_linear_attention
        >>> one = torch.ones(1, 3, 1, 1)
        >>> o, state = gated_linear_attention(one, one, one, torch.tensor([-0.6931472]))
        >>> [round(x, 4) for x in o.flatten().tolist()]
        [1.0, 1.5, 1.75]
    """
    _check(q, k, v, log_decay, bonus, initial_state, reset)
    chosen = select("gated_linear_attention", q, backend)
    factor = q.shape[3] ** -0.5 if scale is None else scale
    arguments = (q, k, v, log_decay, bonus, as_state(initial_state, q), reset, factor)
    if chosen == "reference":
        return gated_linear_attention_reference(*arguments)
    o, final, _ = _op(*arguments, False, chosen)
    return o, final


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    bonus: Tensor | None,
    initial_state: Tensor | None,
    reset: Tensor | None,
) -> None:
    op = "gated_linear_attention"
    check_query(op, q)
    width = value_width(op, v, q)
    batch, length, heads, keys = q.shape
    check_dtype(op, "log_decay", log_decay, gate_dtypes(q))
    shapes = {1: (heads,), 3: (batch, length, heads), 4: (batch, length, heads, keys)}
    if shapes.get(log_decay.dim()) != tuple(log_decay.shape):
        raise ValueError(
            f"{op}: log_decay has shape {tuple(log_decay.shape)}, expected (H,), (B, L, H) or (B, L, H, K) with "
            f"(B, L, H, K) = {tuple(q.shape)}"
        )
    arguments = (
        ("k", k, (batch, length, heads, keys), "(B, L, H, K)", (q.dtype,)),
        ("v", v, (batch, length, heads, width), "(B, L, H, V)", (q.dtype,)),
        ("log_decay", log_decay, tuple(log_decay.shape), "(H,), (B, L, H) or (B, L, H, K)", gate_dtypes(q)),
        ("bonus", bonus, (heads, keys), "(H, K)", (state_dtype(q.dtype), q.dtype)),
    )
    check_arguments(op, q, arguments, width, initial_state, reset)


_op = define_matrix_op(
    "gated_linear_attention",
    "Tensor q, Tensor k, Tensor v, Tensor log_decay, Tensor? bonus",
    gated_linear_attention_reference,
    batched=(0, 1, 2, 3, 5, 6),
)
register_kernel("gated_linear_attention", "reference", Kernel(gated_linear_attention_reference, None, always))
register_kernel("gated_linear_attention", "chunked", Kernel(chunked.forward, chunked.backward, always))
register_kernel("gated_linear_attention", "cpu", Kernel(cpu.forward, cpu.backward, cpu_refuses))
if find_spec("triton"):
    from . import triton

    register_kernel("gated_linear_attention", "triton", Kernel(triton.forward, triton.backward, triton.refuses))
