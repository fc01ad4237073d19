"""The plan of a walk over a directed acyclic graph: levels of nodes, and the pairs of edges that meet at them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_OP = "plstm_scan_dag"


def line_graph(edge_index: Tensor) -> Tensor:
    """Return which edges follow which: the edges of the line graph.

    Args:
        edge_index: (2, E) int64, each edge's source and target.

    Returns:
        (2, P) int64: for each pair of an edge into a node and an edge out of it their numbers, in the order of the
        edge out, then of the edge in.

    Raises:
        ValueError: edge_index is not (2, E).
        TypeError: edge_index is not int64.

    Example:
        >>> import torch
        >>> from scanweave.kernels import line_graph
        >>> line_graph(torch.tensor([[0, 1, 2], [2, 2, 3]])).tolist()
        [[0, 1], [2, 2]]
    """
    check_edges(edge_index)
    source, target = edge_index
    into = torch.argsort(target, stable=True)
    nodes = target[into].contiguous()
    first = torch.searchsorted(nodes, source.contiguous())
    count = torch.searchsorted(nodes, source.contiguous(), right=True) - first
    out = torch.repeat_interleave(torch.arange(source.shape[0], device=source.device), count)
    ahead = count.cumsum(0) - count
    place = torch.arange(out.shape[0], device=out.device) - ahead[out] + first[out]
    return torch.stack([into[place], out])


def check_edges(edge_index: Tensor) -> None:
    """Raise unless edge_index is a (2, E) int64 tensor."""
    if not isinstance(edge_index, Tensor):
        raise TypeError(f"{_OP}: edge_index is a {type(edge_index).__name__}, expected a tensor")
    if edge_index.dtype != torch.int64:
        raise TypeError(f"{_OP}: edge_index has dtype {str(edge_index.dtype).removeprefix('torch.')}, expected int64")
    if edge_index.dim() != 2 or edge_index.shape[0] != 2:
        raise ValueError(f"{_OP}: edge_index has shape {tuple(edge_index.shape)}, expected (2, E)")


class Level(NamedTuple):
    """Edges that leave nodes of one level, and the pairs that feed them; no edge feeds another of its level."""

    edges: Tensor
    """Numbers of the edges, (e,)."""
    pairs: Tensor
    """Numbers of the pairs whose second edge is among them, (p,)."""
    into: Tensor
    """The pairs' first edges, (p,), all of earlier levels."""
    local: Tensor
    """Where among ``edges`` the pairs' second edges stand, (p,)."""


def plan(edge_index: Tensor, nodes: int, pairs: int) -> tuple[Tensor, list[Level]]:
    """Order a graph's edges by the longest path that ends in their source.

    Args:
        edge_index: (2, E) int64.
        nodes: N.
        pairs: P, as many as the transition has.

    Returns:
        The line graph (2, P), and the levels in the order of the walk.

    Raises:
        ValueError: An edge names no node, the edges have a cycle, or there are not ``pairs`` pairs.
    """
    if edge_index.shape[1] and not (int(edge_index.min()) >= 0 and int(edge_index.max()) < nodes):
        wrong = int(((edge_index < 0) | (edge_index >= nodes)).any(0).nonzero()[0, 0])
        raise ValueError(
            f"{_OP}: edge {wrong} is {edge_index[:, wrong].tolist()}, expected nodes from 0 to {nodes - 1}"
        )
    line = line_graph(edge_index)
    if line.shape[1] != pairs:
        raise ValueError(
            f"{_OP}: transition has {pairs} pairs on axis 0, expected {line.shape[1]}: one for each column of "
            "line_graph(edge_index)"
        )
    depth = _depths(edge_index.cpu(), nodes).to(edge_index.device)
    of_edge = depth[edge_index[0]]
    # Pairs stand in the order of their second edge: sorted by level, both come in one piece a level.
    edges, of_pair = torch.argsort(of_edge, stable=True), of_edge[line[1]]
    order = torch.argsort(of_pair, stable=True)
    levels = int(of_edge.max()) + 1 if len(of_edge) else 0
    sizes = torch.bincount(of_edge, minlength=levels).tolist(), torch.bincount(of_pair, minlength=levels).tolist()
    place = torch.empty_like(edges)
    place[edges] = torch.arange(len(edges), device=edges.device)
    found, begin = [], 0
    for own, its_pairs in zip(edges.split(sizes[0]), order.split(sizes[1]), strict=True):
        into, out = line[:, its_pairs]
        found.append(Level(own, its_pairs, into, place[out] - begin))
        begin += len(own)
    return line, found


def _depths(edge_index: Tensor, nodes: int) -> Tensor:
    """Return the number of edges on the longest path to each node, (N,), by taking off what nothing leads to."""
    source, target = edge_index
    order = torch.argsort(source, stable=True)
    targets = target[order]
    starts = torch.searchsorted(source[order].contiguous(), torch.arange(nodes + 1))
    waiting = torch.bincount(target, minlength=nodes)
    depth, level = torch.zeros(nodes, dtype=torch.int64), 0
    front, seen = (waiting == 0).nonzero().flatten(), 0
    while len(front):
        depth[front] = level
        seen += len(front)
        count = starts[front + 1] - starts[front]
        ahead = torch.repeat_interleave(starts[front] - (count.cumsum(0) - count), count)
        reached = targets[torch.arange(int(count.sum())) + ahead]
        waiting -= torch.bincount(reached, minlength=nodes)
        reached = reached.unique()
        front, level = reached[waiting[reached] == 0], level + 1
    if seen < nodes:
        stuck = int(((waiting[source] > 0) & (waiting[target] > 0)).nonzero()[0, 0])
        ends = f"{int(source[stuck])} to {int(target[stuck])}"
        raise ValueError(
            f"{_OP}: edge_index has a cycle, which edge {stuck} ({ends}) is in or leads from; expected none"
        )
    return depth
