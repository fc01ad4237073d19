"""plstm_scan_1d: pLSTM over a sequence, the graph that is a line."""

from __future__ import annotations

from torch import Tensor

from ..checks import state_dtype
from ..dispatch import select
from ..gated_linear_attention import gated_linear_attention
from ..matrix_state import as_state, check_arguments, check_query, gate_dtypes, value_width
from .reference import plstm_line_reference

_OP = "plstm_scan_1d"


def plstm_scan_1d(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    source: Tensor,
    log_transition: Tensor,
    mark: Tensor,
    direct: Tensor,
    *,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    reset: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Run pLSTM along a sequence: a matrix state on the edge from each step to the next.

    ``o_t = scale * (M_t C_{t-1} + D_t k_t v_t^T)^T q_t``, ``C_t = exp(log_transition_t) C_{t-1} + S_t k_t v_t^T``.
    It is :func:`gated_linear_attention` that reads before it writes, and has no kernel of its own.

    Args:
        q: Queries, (B, L, H, K) float32, float64, bfloat16 or float16.
        k: Keys, (B, L, H, K), q's dtype.
        v: Values, (B, L, H, V), q's dtype.
        source: S, (B, L, H), q's dtype or float32, as the gates below.
        log_transition: Logarithm of T, (B, L, H), at most 0: along a line P- and D-mode are the same, a share that
            stays. -inf lets nothing through.
        mark: M, (B, L, H).
        direct: D, (B, L, H).
        scale: Factor of the output; 1 / sqrt(K) if None.
        initial_state: State of the edge into the first step, (B, H, K, V); zero if None.
        reset: (B, L) bool; where True the state of the edge into that step counts as zero.
        backend: Force ``triton``, ``cpu``, ``chunked`` or ``reference``; None chooses by device.

    Returns:
        o: (B, L, H, V), q's dtype.
        final_state: State of the edge out of the last step; float32 for half types, else q's dtype.

    Raises:
        TypeError: A dtype is not supported or does not fit q's.
        ValueError: Shapes or devices do not fit, the length is 0, or log_transition is NaN or above 0 (seen where
            :func:`gated_linear_attention` sees it of its decay).
        BackendError: A forced backend cannot serve the call.

    Source:
        Pöppel et al., pLSTM: parallelizable linear source transition mark networks (2025), section 3.

    Example:
        >>> import torch
        >>> from scanweave.kernels import plstm_scan_1d
        >>> one = torch.ones(1, 3, 1, 1)
        >>> gate = torch.ones(1, 3, 1)
        >>> o, state = plstm_scan_1d(one, one, one, gate, torch.full((1, 3, 1), 0.5).log(), gate, gate)
        >>> o.flatten().tolist()
        [1.0, 2.0, 2.5]
    """
    check_query(_OP, q)
    steps, width, dtypes = tuple(q.shape[:3]), value_width(_OP, v, q), gate_dtypes(q)
    gates = (("source", source), ("log_transition", log_transition), ("mark", mark), ("direct", direct))
    arguments = (
        ("k", k, tuple(q.shape), "(B, L, H, K)", (q.dtype,)),
        ("v", v, (*steps, width), "(B, L, H, V)", (q.dtype,)),
        *((name, gate, steps, "(B, L, H)", dtypes) for name, gate in gates),
    )
    check_arguments(_OP, q, arguments, width, initial_state, reset)
    factor = q.shape[3] ** -0.5 if scale is None else scale
    if select("gated_linear_attention", q, backend) == "reference":
        state = as_state(initial_state, q)
        return plstm_line_reference(q, k, v, source, log_transition, mark, direct, state, reset, factor)
    nothing = q.new_zeros(q.shape[2:])
    read, written = (_times(x, gate) for x, gate in ((q, mark), (k, source)))
    o, final = gated_linear_attention(
        read, written, v, log_transition, bonus=nothing, scale=factor,
        initial_state=initial_state, reset=reset, backend=backend,
    )  # fmt: skip
    dtype = state_dtype(q.dtype)
    own = (q.to(dtype) * k.to(dtype)).sum(-1) * direct.to(dtype) * factor
    return (o.to(dtype) + own.unsqueeze(-1) * v.to(dtype)).to(q.dtype), final


def _times(x: Tensor, gate: Tensor) -> Tensor:
    """Return x (B, L, H, K) times a gate (B, L, H), in x's dtype."""
    return (x * gate.unsqueeze(-1)).to(x.dtype)
