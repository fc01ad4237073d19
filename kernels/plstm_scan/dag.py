"""plstm_scan_dag: pLSTM over a directed acyclic graph, given by its edges."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..checks import FLOATS, check_device, check_dtype, check_shape, state_dtype
from ..dispatch import Kernel, always, register_kernel, select
from ..library import define_op, gradients_of
from . import levels
from .graph import check_edges
from .reference import plstm_dag_reference

_OP = "plstm_scan_dag"


def plstm_scan_dag(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    source: Tensor,
    transition: Tensor,
    mark: Tensor,
    direct: Tensor,
    edge_index: Tensor,
    *,
    scale: float | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Run pLSTM over a directed acyclic graph: a matrix state on every edge.

    An edge e out of node n has ``C_e = sum_{e' into n} T_{e' e} C_{e'} + S_e k_n v_n^T``, and the node
    ``o_n = scale * (sum_{e' into n} M_{e'} C_{e'} + D_n k_n v_n^T)^T q_n``. Several graphs are one whose parts have no
    edge in common. Nodes are taken level by level, by the longest path that leads to them; memory is the states'.

    Args:
        q: Queries, (N, H, K) float32, float64, bfloat16 or float16.
        k: Keys, (N, H, K), q's dtype.
        v: Values, (N, H, V), q's dtype.
        source: S, (E, H): into each edge from the node it leaves. q's dtype or float32, as the gates below.
        transition: T, (P, H): for each pair of an edge into a node and an edge out of it, in the order of
            :func:`line_graph`.
        mark: M, (E, H): from each edge to the node it enters.
        direct: D, (N, H).
        edge_index: (2, E) int64: each edge's source and target.
        scale: Factor of the output; 1 / sqrt(K) if None.
        backend: Force ``chunked`` (the levels) or ``reference``; None chooses. There is no other form yet.

    Returns:
        o: (N, H, V), q's dtype.
        states: The edges' states, (E, H, K, V), float32 for half types, else q's dtype.

    Raises:
        TypeError: A dtype is not supported or does not fit q's.
        ValueError: Shapes or devices do not fit, an edge names no node, or the edges have a cycle.
        BackendError: A forced backend cannot serve the call.

    Source:
        Pöppel et al., pLSTM: parallelizable linear source transition mark networks (2025), section 3.

    Example:
        >>> import torch
        >>> from scanweave.kernels import line_graph, plstm_scan_dag
        >>> edges = torch.tensor([[0, 1], [1, 2]])
        >>> node, edge, pair = torch.ones(3, 1, 1), torch.ones(2, 1), torch.full((line_graph(edges).shape[1], 1), 0.5)
        >>> o, states = plstm_scan_dag(node, node, node, edge, pair, edge, torch.ones(3, 1), edges)
        >>> o.flatten().tolist()
        [1.0, 2.0, 2.5]
    """
    _check(q, k, v, {"source": source, "transition": transition, "mark": mark, "direct": direct}, edge_index)
    factor = q.shape[2] ** -0.5 if scale is None else scale
    arguments = (q, k, v, source, transition, mark, direct, edge_index, factor)
    chosen = select(_OP, q, backend)
    if chosen == "reference":
        return plstm_dag_reference(*arguments)
    o, states = _op(*arguments, chosen)
    return o, states


def _check(q: Tensor, k: Tensor, v: Tensor, gates: dict[str, Tensor], edge_index: Tensor) -> None:
    check_dtype(_OP, "q", q, FLOATS)
    if q.dim() != 3 or 0 in q.shape:
        raise ValueError(f"{_OP}: q has shape {tuple(q.shape)}, expected (N, H, K), each at least 1")
    for name, x in (("k", k), ("v", v)):
        check_dtype(_OP, name, x, (q.dtype,))
    check_shape(_OP, "k", k, tuple(q.shape), "(N, H, K)")
    check_shape(_OP, "v", v, (*q.shape[:2], v.shape[-1] if v.dim() == 3 else 1), "(N, H, V)")
    check_edges(edge_index)
    counts = {"source": ("E", edge_index.shape[1]), "mark": ("E", edge_index.shape[1]), "direct": ("N", q.shape[0])}
    for name, x in gates.items():
        check_dtype(_OP, name, x, (state_dtype(q.dtype), q.dtype))
        letter, count = counts.get(name, ("P", x.shape[0] if x.dim() else 0))
        check_shape(_OP, name, x, (count, q.shape[1]), f"({letter}, H)")
    check_device(_OP, q, {"k": k, "v": v, **gates, "edge_index": edge_index})


def _fake(q: Tensor, k: Tensor, v: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    edges, dtype = others[4].shape[1], state_dtype(q.dtype)
    return v.new_empty(v.shape), v.new_empty((edges, *q.shape[1:], v.shape[2]), dtype=dtype)


def _fake_backward(*saved: Any) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(x.shape) for x in saved[:7])


def _gradients(*saved: Any) -> tuple[Tensor | None, ...]:
    """Return the gradients by differentiating the reference form: for a gradient of the gradient."""
    return gradients_of(plstm_dag_reference, saved[:9], saved[10:])[:7]


_ARGUMENTS = (
    "Tensor q, Tensor k, Tensor v, Tensor source, Tensor transition, Tensor mark, Tensor direct, Tensor edge_index, "
    "float scale, "
)
_op = define_op(
    _OP,
    schema=f"({_ARGUMENTS}str backend) -> (Tensor, Tensor)",
    backward_schema=(
        f"({_ARGUMENTS}Tensor states, Tensor? do, Tensor? dstates, str backend) -> ({', '.join(['Tensor'] * 7)})"
    ),
    fake=_fake,
    fake_backward=_fake_backward,
    saved=lambda arguments, outputs: (*arguments[:9], outputs[1]),
    differentiable=tuple(range(7)),
    twice=_gradients,
)
register_kernel(_OP, "reference", Kernel(plstm_dag_reference, None, always))
register_kernel(_OP, "chunked", Kernel(levels.forward, levels.backward, always))
