"""plstm_scan on a grid in PyTorch ops alone: tiles whose paths are summed in logarithmic depth, as matrix products."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import state_dtype
from ..library import recording
from .tiles import merge, pass_through
from .walk import NODES, Call, walked

TILE = 16  # sides of a tile


def run_tile(nodes: Sequence[Tensor], left: Tensor, top: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Run a tile of the grid: arguments and results as those of the reference, heads before the grid's axes.

    Args:
        nodes: q and k (B, H, X, Y, K), v (B, H, X, Y, V), source, transition, mark and direct (B, H, X, Y, ...).
        left: (B, H, X, K, V).
        top: (B, H, Y, K, V).
        scale: Factor of the output.
    """
    q, k, v, *gates = nodes
    rows, columns = q.shape[2:4]
    whole = [1 << (n - 1).bit_length() for n in (rows, columns)]
    block, order = merge(pass_through(gates, *whole), *whole)
    more = (0, 0, 0, whole[1] - columns, 0, whole[0] - rows)
    q, k, v = (F.pad(x, more).flatten(2, 3)[:, :, order] for x in (q, k, v))
    left, top = (F.pad(x, (0, 0, 0, 0, 0, n - x.shape[2])) for x, n in zip((left, top), whole, strict=True))
    o = (q @ k.mT * block.inside) @ v
    right = _leave(k, v, block.source_right)
    bottom = _leave(k, v, block.source_down)
    for edges, marks, to_right, to_bottom in (
        (left, block.mark_left, block.right_left, block.down_left),
        (top, block.mark_up, block.right_up, block.down_up),
    ):
        states = edges.flatten(3)
        right, bottom = right + to_right @ states, bottom + to_bottom @ states
        # Each node's query against each edge's state, then the share of the edge that the node reads.
        seen = torch.einsum("bhnk,bhekv->bhnev", q, edges)
        o = o + (marks.unsqueeze(-2) @ seen).squeeze(-2)
    back = torch.argsort(order)
    o = scale * o[:, :, back].unflatten(2, whole)[:, :, :rows, :columns]
    shape = edges.shape[3:]
    return o, right[:, :, :rows].unflatten(3, shape), bottom[:, :, :columns].unflatten(3, shape)


def _leave(k: Tensor, v: Tensor, share: Tensor) -> Tensor:
    """Return what nodes send into edges, (B, H, edges, K V): keys (B, H, N, K), values, shares (B, H, N, edges)."""
    weighted = share.mT.unsqueeze(-1) * k.unsqueeze(2)
    return (weighted.mT @ v.unsqueeze(2)).flatten(3)


def plstm_grid_chunked(
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
    """Run the grid tile by tile; arguments and results as those of the reference."""
    nodes = [x.to(state_dtype(q.dtype)).movedim(3, 1) for x in (q, k, v, source, transition, mark, direct)]
    batch, heads, rows, columns, keys = nodes[0].shape
    zero = nodes[0].new_zeros((batch, heads, 1, keys, v.shape[-1]))
    along = zero.expand(-1, -1, rows, -1, -1) if left is None else left.transpose(1, 2)
    down = zero.expand(-1, -1, columns, -1, -1) if top is None else top.transpose(1, 2)
    bands, right = [], []
    for band in _tiles(rows):
        outputs, below, state = [], [], along[:, :, band]
        for part in _tiles(columns):
            tile = [x[:, :, band, part] for x in nodes]
            o, state, leaving = run_tile(tile, state, down[:, :, part], scale)
            outputs.append(o)
            below.append(leaving)
        bands.append(torch.cat(outputs, 3))
        right.append(state)
        down = torch.cat(below, 2)
    o = torch.cat(bands, 2).movedim(1, 3)
    return o.to(q.dtype), torch.cat(right, 2).transpose(1, 2), down.transpose(1, 2)


def _tiles(length: int) -> list[slice]:
    return [slice(start, min(start + TILE, length)) for start in range(0, length, TILE)]


def forward(call: Call, save: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Run the op; nothing is saved."""
    o, along, across = walked(plstm_grid_chunked, call)
    nothing = along.new_empty((len(o), 0, *across.shape[1:]))
    return o.contiguous(), along.contiguous(), across.contiguous(), nothing


def backward(call: Call, before: Tensor, into: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    """Return the gradients, by differentiating the forward pass anew."""
    with recording():
        leaves = [None if x is None else x.detach().requires_grad_() for x in (*call.nodes, *call.entering)]
        again = Call(tuple(leaves[:NODES]), tuple(leaves[NODES:]), call.flips, call.scale)  # type: ignore[arg-type]
        outputs = walked(plstm_grid_chunked, again)
        given = [i for i, g in enumerate(into) if g is not None]
        found = iter(
            torch.autograd.grad(
                [outputs[i] for i in given],
                [x for x in leaves if x is not None],
                [into[i] for i in given],
                materialize_grads=True,
            )
        )
    return tuple(before.new_empty(0) if x is None else next(found).contiguous() for x in leaves)
