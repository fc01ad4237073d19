"""mlstm_scan: the matrix LSTM's recurrence, a gated linear attention whose gates are kept in range."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import check_device, check_dtype, check_shape, state_dtype
from ..dispatch import select
from ..gated_linear_attention import gated_linear_attention
from ..linear_scan import linear_scan
from ..matrix_state import check_arguments, check_query, gate_dtypes, value_width
from .reference import MLSTMState, hidden, mlstm_scan_reference

__all__ = ["MLSTMState", "mlstm_scan"]


def mlstm_scan(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    input_gate: Tensor,
    forget_gate: Tensor,
    *,
    scale: float | None = None,
    initial_state: MLSTMState | tuple[Tensor, Tensor, Tensor] | None = None,
    reset: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, MLSTMState]:
    """Run the matrix LSTM's recurrence over axis 1.

    ``m_t = max(log f_t + m_{t-1}, input_gate_t)`` with ``log f = logsigmoid(forget_gate)`` keeps the gates
    ``f' = exp(log f_t + m_{t-1} - m_t)`` and ``i' = exp(input_gate_t - m_t)`` at most 1;
    ``C_t = f' C_{t-1} + i' k_t v_t^T``, ``n_t = f' n_{t-1} + i' k_t``, and with ``r_t = scale q_t``
    ``h_t = C_t^T r_t / max(|n_t . r_t|, exp(-m_t))``.

    Args:
        q: Queries, (B, L, H, K) float32, float64, bfloat16 or float16.
        k: Keys, (B, L, H, K), q's dtype.
        v: Values, (B, L, H, V), q's dtype.
        input_gate: Logarithm of the exponential input gate, (B, L, H), finite. q's dtype or float32.
        forget_gate: The forget gate before its logistic function, (B, L, H), finite. q's dtype or float32.
        scale: Factor of the queries; 1 / sqrt(K) if None.
        initial_state: State before the first step: C (B, H, K, V), n (B, H, K), m (B, H); zeros if None.
        reset: (B, L) bool; where True the state before that step counts as zero: the first step of each sequence of a
            packed batch.
        backend: Force ``triton``, ``cpu``, ``chunked`` or ``reference``; None chooses by device.

    Returns:
        h: (B, L, H, V), q's dtype.
        final_state: The state after the last step; float32 for half types, else q's dtype.

    Raises:
        TypeError: A dtype is not supported or does not fit q's.
        ValueError: Shapes or devices do not fit, or the length is 0.
        BackendError: A forced backend cannot serve the call.

    Source:
        Beck et al., xLSTM: extended long short-term memory (2024), equations 19 to 27.

    Example:
        >>> import torch
        >>> from scanweave.kernels import mlstm_scan
        >>> one = torch.ones(1, 3, 1, 1)
        >>> h, state = mlstm_scan(one, one, one, one[..., 0], 9 * one[..., 0])
        >>> [round(x, 4) for x in h.flatten().tolist()]
        [1.0, 1.0, 1.0]
    """
    op = "mlstm_scan"
    check_query(op, q)
    width, shape = value_width(op, v, q), tuple(q.shape)
    arguments = (
        ("k", k, shape, "(B, L, H, K)", (q.dtype,)),
        ("v", v, (*shape[:3], width), "(B, L, H, V)", (q.dtype,)),
        ("input_gate", input_gate, shape[:3], "(B, L, H)", gate_dtypes(q)),
        ("forget_gate", forget_gate, shape[:3], "(B, L, H)", gate_dtypes(q)),
    )
    check_arguments(op, q, arguments, width, None, reset)
    state = _state(q, width, initial_state)
    factor = shape[3] ** -0.5 if scale is None else scale
    chosen = select("gated_linear_attention", q, backend)
    if chosen == "reference":
        return mlstm_scan_reference(q, k, v, input_gate, forget_gate, state, reset, factor)
    return _composed(q, k, v, input_gate, forget_gate, state, reset, factor, chosen)


def _state(q: Tensor, width: int, given: tuple[Tensor, Tensor, Tensor] | None) -> MLSTMState:
    """Return the checked initial state in the state's dtype."""
    dtype, (batch, _, heads, keys) = state_dtype(q.dtype), q.shape
    shapes = (batch, heads, keys, width), (batch, heads, keys), (batch, heads)
    if given is None:
        return MLSTMState(*(q.new_zeros(shape, dtype=dtype) for shape in shapes))
    if not isinstance(given, tuple) or len(given) != 3:
        raise TypeError(f"mlstm_scan: initial_state is a {type(given).__name__}, expected the three tensors (C, n, m)")
    names = "initial_state.C", "initial_state.n", "initial_state.m"
    layouts = "(B, H, K, V)", "(B, H, K)", "(B, H)"
    for name, tensor, shape, layout in zip(names, given, shapes, layouts, strict=True):
        check_dtype("mlstm_scan", name, tensor, (dtype, q.dtype))
        check_shape("mlstm_scan", name, tensor, shape, layout)
    check_device("mlstm_scan", q, dict(zip(names, given, strict=True)))
    return MLSTMState(*(x.to(dtype) for x in given))


def _carries(log_f: Tensor, i: Tensor, m: Tensor, reset: Tensor | None) -> Tensor:
    """Return where ``log f_t + m_{t-1} >= i_t``, (B, L, H) bool: where the maximum hands m on.

    With ``F_t`` the sum of log f, ``m_t - F_t`` is a running maximum of ``i_t - F_t``.
    """
    # Sums of thousands of steps must tell near gates apart; Apple's GPUs have no float64.
    wide = torch.float32 if i.device.type == "mps" else torch.float64
    log_f, i, m = (x.detach().to(wide) for x in (log_f, i, m))
    total = log_f.cumsum(1)
    before = total - log_f
    if reset is None:
        carried = torch.cat([m.unsqueeze(1), i - total], 1)
        return carried.cummax(1).values[:, :-1] + total >= i
    # A start is a maximum that no earlier one exceeds: each sequence is lifted above all that went before it.
    starts = reset.unsqueeze(-1)
    candidates = torch.where(starts, torch.maximum(i - total, -before), i - total)
    carried = torch.cat([m.unsqueeze(1), candidates], 1)
    number = torch.cat([torch.zeros_like(reset[:, :1]), reset], 1).cumsum(1).unsqueeze(-1).to(wide)
    lift = number * (carried.amax(1, keepdim=True) - carried.amin(1, keepdim=True) + 1)
    best = (carried + lift).cummax(1).values - lift
    return torch.where(starts, log_f >= i, best[:, :-1] + total >= i)


def _composed(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    input_gate: Tensor,
    forget_gate: Tensor,
    state: MLSTMState,
    reset: Tensor | None,
    scale: float,
    backend: str,
) -> tuple[Tensor, MLSTMState]:
    """Compute :func:`mlstm_scan_reference` by the scans that other ops serve."""
    C, n, m_first = state
    log_f, i = F.logsigmoid(forget_gate.to(C.dtype)), input_gate.to(C.dtype)
    carries = _carries(log_f, i, m_first, reset)
    m, m_last = linear_scan(
        carries.to(C.dtype), torch.where(carries, log_f, i), initial_state=m_first, reset=reset, backend=backend
    )
    previous = torch.cat([m_first.unsqueeze(1), m], 1)[:, :-1]
    if reset is not None:
        previous = previous.masked_fill(reset.unsqueeze(-1), 0)
    # Where m is handed on, the forget gate is exactly 1 beside it, and the input gate where it is not.
    log_decay = torch.where(carries, 0, log_f + previous - i).clamp(max=0)
    # In the state's dtype: a quotient of sums that were rounded to half precision would be twice as far off.
    queries, keys, values = (x.to(C.dtype) for x in (q, k, v))
    keys = keys * torch.exp(torch.where(carries, i - m, 0)).unsqueeze(-1)
    # n is the state of values that are 1: a further column of C, so that keys and decays are compared once.
    ones = values.new_ones(()).expand(*v.shape[:3], 1)
    found, last = gated_linear_attention(
        queries,
        keys,
        torch.cat([values, ones], -1),
        log_decay,
        scale=scale,
        initial_state=torch.cat([C, n.unsqueeze(-1)], -1),
        reset=reset,
        backend=backend,
    )
    h = hidden(found[..., :-1], found[..., -1], m)
    return h.to(q.dtype), MLSTMState(last[..., :-1], last[..., -1], m_last)
