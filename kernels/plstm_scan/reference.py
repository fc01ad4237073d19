"""plstm_scan's definition on a line, a grid and a graph: states on the edges, node by node."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import state_dtype
from .graph import plan


def plstm_grid_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    source: Tensor,
    transition: Tensor,
    mark: Tensor,
    direct: Tensor,
    left: Tensor | None,
    top: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Send matrix states right and down over a grid, node by node.

    Node (x, y) takes ``L``, the state of the edge from its left, and ``U``, that of the edge from above, and has

    ``o = scale * (M_l L + M_u U + D k v^T)^T q``
    ``C_right = T_rl L + T_ru U + S_r k v^T``
    ``C_down = T_dl L + T_du U + S_d k v^T``

    Args:
        q: Queries (B, X, Y, H, K).
        k: Keys (B, X, Y, H, K).
        v: Values (B, X, Y, H, V).
        source: S, (B, X, Y, H, 2): into the edge to the right, and down.
        transition: T, (B, X, Y, H, 2, 2): to the right and down, by from the left and from above.
        mark: M, (B, X, Y, H, 2): from the left, and from above.
        direct: D, (B, X, Y, H).
        left: States of the edges into the first column (B, X, H, K, V); zero if None.
        top: States of the edges into the first row (B, Y, H, K, V); zero if None.
        scale: Factor of the output.

    Returns:
        o (B, X, Y, H, V) in q's dtype, the states of the edges out of the last column (B, X, H, K, V) and out of the
        last row (B, Y, H, K, V).

    Source:
        Pöppel et al., pLSTM: parallelizable linear source transition mark networks (2025), section 3.
    """
    given, dtype = q.dtype, state_dtype(q.dtype)
    batch, rows, columns, heads, keys = q.shape
    q, k, v, source, transition, mark, direct = (x.to(dtype) for x in (q, k, v, source, transition, mark, direct))
    zero = q.new_zeros((batch, heads, keys, v.shape[-1]))
    down = [zero] * columns if top is None else list(top.unbind(1))
    outputs, right = [], []
    for x in range(rows):
        along = zero if left is None else left[:, x]
        for y in range(columns):
            node = (slice(None), x, y)
            kv = k[node].unsqueeze(-1) * v[node].unsqueeze(-2)
            s, t, m = (gate[node][..., None, None] for gate in (source, transition, mark))
            above = down[y]
            read = m[..., 0, :, :] * along + m[..., 1, :, :] * above + direct[node][..., None, None] * kv
            outputs.append(scale * (read * q[node].unsqueeze(-1)).sum(-2))
            along, down[y] = (
                t[..., out, 0, :, :] * along + t[..., out, 1, :, :] * above + s[..., out, :, :] * kv for out in (0, 1)
            )
        right.append(along)
    o = torch.stack(outputs, 1).unflatten(1, (rows, columns))
    return o.to(given), torch.stack(right, 1), torch.stack(down, 1)


def plstm_line_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    source: Tensor,
    log_transition: Tensor,
    mark: Tensor,
    direct: Tensor,
    initial_state: Tensor | None,
    reset: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Send a matrix state along a line, step by step.

    ``o_t = scale * (M_t C_{t-1} + D_t k_t v_t^T)^T q_t``, ``C_t = T_t C_{t-1} + S_t k_t v_t^T``

    Args:
        q: Queries (B, L, H, K).
        k: Keys (B, L, H, K).
        v: Values (B, L, H, V).
        source: S, (B, L, H).
        log_transition: Logarithm of T, (B, L, H).
        mark: M, (B, L, H).
        direct: D, (B, L, H).
        initial_state: C_0, (B, H, K, V); zero if None.
        reset: (B, L) bool; where True the state before that step counts as zero.
        scale: Factor of the output.

    Returns:
        o (B, L, H, V) in q's dtype and the state after the last step.

    Source:
        Pöppel et al., pLSTM: parallelizable linear source transition mark networks (2025), section 3.
    """
    dtype = state_dtype(q.dtype)
    wide = [x.to(dtype) for x in (q, k, v, source, log_transition.to(dtype).exp(), mark, direct)]
    state = wide[0].new_zeros(()) if initial_state is None else initial_state
    outputs = []
    for t, (q_t, k_t, v_t, *gates) in enumerate(zip(*(x.unbind(1) for x in wide), strict=True)):
        s, keep, m, d = (gate[..., None, None] for gate in gates)
        if reset is not None and state.dim():
            state = state.masked_fill(reset[:, t, None, None, None], 0)
        kv = k_t.unsqueeze(-1) * v_t.unsqueeze(-2)
        outputs.append(scale * ((m * state + d * kv) * q_t.unsqueeze(-1)).sum(-2))
        state = keep * state + s * kv
    return torch.stack(outputs, 1).to(q.dtype), state


def plstm_dag_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    source: Tensor,
    transition: Tensor,
    mark: Tensor,
    direct: Tensor,
    edge_index: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Send matrix states along the edges of a graph, node by node, each after all that lead to it.

    ``C_e = sum_{e' into n} T_{e' e} C_{e'} + S_e k_n v_n^T`` for an edge e out of node n,
    ``o_n = scale * (sum_{e' into n} M_{e'} C_{e'} + D_n k_n v_n^T)^T q_n``

    Args:
        q: Queries (N, H, K).
        k: Keys (N, H, K).
        v: Values (N, H, V).
        source: S, (E, H).
        transition: T, (P, H), in the order of :func:`..plstm_scan.graph.line_graph`.
        mark: M, (E, H).
        direct: D, (N, H).
        edge_index: (2, E) int64.
        scale: Factor of the output.

    Returns:
        o (N, H, V) in q's dtype and the edges' states (E, H, K, V).

    Raises:
        ValueError: An edge names no node, the edges have a cycle, or there are not as many pairs as T has.

    Source:
        Pöppel et al., pLSTM: parallelizable linear source transition mark networks (2025), section 3.
    """
    given, dtype = q.dtype, state_dtype(q.dtype)
    q, k, v, source, transition, mark, direct = (x.to(dtype) for x in (q, k, v, source, transition, mark, direct))
    line, levels = plan(edge_index, len(q), len(transition))
    pairs: dict[int, list[tuple[int, int]]] = {}
    for pair, (into, out) in enumerate(line.t().tolist()):
        pairs.setdefault(out, []).append((pair, into))
    kv = k.unsqueeze(-1) * v.unsqueeze(-2)
    starts, ends = edge_index.tolist()
    states: dict[int, Tensor] = {}
    read = list((direct[..., None, None] * kv).unbind(0))
    for edge in (edge for level in levels for edge in level.edges.tolist()):
        state = source[edge, :, None, None] * kv[starts[edge]]
        for pair, into in pairs.get(edge, []):
            state = state + transition[pair, :, None, None] * states[into]
        states[edge] = state
        read[ends[edge]] = read[ends[edge]] + mark[edge, :, None, None] * state
    o = scale * (torch.stack(read) * q.unsqueeze(-1)).sum(-2)
    every = [states[edge] for edge in range(len(states))]
    return o.to(given), torch.stack(every) if every else kv[:0]
