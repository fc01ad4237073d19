"""plstm_scan_dag by topological levels: all edges that leave a level at once, forward and backward."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import state_dtype
from .graph import plan


def _wide(x: Tensor) -> Tensor:
    return x.to(state_dtype(x.dtype))


def forward(
    q: Tensor, k: Tensor, v: Tensor, source: Tensor, transition: Tensor, mark: Tensor, direct: Tensor,
    edge_index: Tensor, scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return o (N, H, V) and the edges' states (E, H, K, V)."""
    dtype = q.dtype
    q, k, v, source, transition, mark, direct = map(_wide, (q, k, v, source, transition, mark, direct))
    start, end = edge_index
    states = q.new_empty((edge_index.shape[1], *k.shape[1:], v.shape[2]))
    _, levels = plan(edge_index, q.shape[0], transition.shape[0])
    for edges, pairs, into, local in levels:
        nodes = start[edges]
        new = (source[edges].unsqueeze(-1) * k[nodes]).unsqueeze(-1) * v[nodes].unsqueeze(-2)
        new.index_add_(0, local, transition[pairs, :, None, None] * states[into])
        states[edges] = new
    o = (direct * (q * k).sum(-1)).unsqueeze(-1) * v
    read = torch.einsum("ehk,ehkv->ehv", mark.unsqueeze(-1) * q[end], states)
    return (scale * o.index_add_(0, end, read)).to(dtype), states


def backward(
    q: Tensor, k: Tensor, v: Tensor, source: Tensor, transition: Tensor, mark: Tensor, direct: Tensor,
    edge_index: Tensor, scale: float, states: Tensor, do: Tensor | None, dstates: Tensor | None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Return the gradients of the seven tensors: the edges' gradients flow from level to level, backwards."""
    given = (q, k, v, source, transition, mark, direct)
    q, k, v, source, transition, mark, direct = map(_wide, given)
    start, end = edge_index
    do = torch.zeros_like(v) if do is None else scale * _wide(do)
    line, levels = plan(edge_index, q.shape[0], transition.shape[0])
    grad = torch.einsum("eh,ehk,ehv->ehkv", mark, q[end], do[end])
    if dstates is not None:
        grad = grad + dstates
    for edges, pairs, into, local in reversed(levels):
        grad.index_add_(0, into, transition[pairs, :, None, None] * grad[edges][local])
    seen, own = torch.einsum("ehkv,ehv->ehk", states, do[end]), (q * k).sum(-1)
    value = (v * do).sum(-1)
    dk_edges, dv_edges = torch.einsum("ehkv,ehv->ehk", grad, v[start]), torch.einsum("ehkv,ehk->ehv", grad, k[start])
    weight = (direct * value).unsqueeze(-1)
    found = (
        (weight * k).index_add(0, end, mark.unsqueeze(-1) * seen),
        (weight * q).index_add(0, start, source.unsqueeze(-1) * dk_edges),
        ((direct * own).unsqueeze(-1) * do).index_add(0, start, source.unsqueeze(-1) * dv_edges),
        (dk_edges * k[start]).sum(-1),
        _products(grad, states, line),
        (seen * q[end]).sum(-1),
        own * value,
    )
    return tuple(x.to(like.dtype) for x, like in zip(found, given, strict=True))


def _products(grad: Tensor, states: Tensor, line: Tensor, piece: int = 4096) -> Tensor:
    """Return the product of each pair's gradient and state, (P, H), a piece at a time: pairs outnumber edges."""
    sums = [
        torch.einsum("phkv,phkv->ph", grad[out], states[into])
        for into, out in zip(line[0].split(piece), line[1].split(piece), strict=True)
    ]
    return torch.cat(sums) if sums else grad.new_zeros((0, grad.shape[1]))
