"""What a block of a grid does to the states that cross it, in a depth that grows with the logarithm of its sides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Block(NamedTuple):
    """Weights summed over all paths through blocks of N nodes, a rows and c columns; leading axes (..., rows, columns)
    count the blocks of a grid.

    Args:
        source_right: From a node into the edges that leave to the right, (..., N, a).
        source_down: From a node into those that leave below, (..., N, c).
        mark_left: What a node reads of the edges that enter from the left, (..., N, a).
        mark_up: What it reads of those that enter from above, (..., N, c).
        right_left: From the edges from the left into those to the right, (..., a, a).
        right_up: From those from above into those to the right, (..., a, c).
        down_left: (..., c, a).
        down_up: (..., c, c).
        inside: What a node reads of another one, (..., N, N), the reader first.
    """

    source_right: Tensor
    source_down: Tensor
    mark_left: Tensor
    mark_up: Tensor
    right_left: Tensor
    right_up: Tensor
    down_left: Tensor
    down_up: Tensor
    inside: Tensor

    def turned(self) -> Block:
        """Return the block of the grid whose rows are this one's columns."""
        return Block(
            self.source_down,
            self.source_right,
            self.mark_up,
            self.mark_left,
            self.down_up,
            self.down_left,
            self.right_up,
            self.right_left,
            self.inside,
        )


def _square(a: Tensor, b: Tensor | None, c: Tensor | None, d: Tensor) -> Tensor:
    """Join four matrices, a and b above c and d; None is a block of zeros."""
    b = a.new_zeros((*a.shape[:-1], d.shape[-1])) if b is None else b
    c = a.new_zeros((*d.shape[:-1], a.shape[-1])) if c is None else c
    return torch.cat([torch.cat([a, b], -1), torch.cat([c, d], -1)], -2)


def join(first: Block, second: Block) -> Block:
    """Return blocks and those at their right as one: what leaves the first to the right enters the second."""
    a, b = first, second
    return Block(
        torch.cat([a.source_right @ b.right_left.mT, b.source_right], -2),
        _square(a.source_down, a.source_right @ b.down_left.mT, None, b.source_down),
        torch.cat([a.mark_left, b.mark_left @ a.right_left], -2),
        _square(a.mark_up, None, b.mark_left @ a.right_up, b.mark_up),
        b.right_left @ a.right_left,
        torch.cat([b.right_left @ a.right_up, b.right_up], -1),
        torch.cat([a.down_left, b.down_left @ a.right_left], -2),
        _square(a.down_up, None, b.down_left @ a.right_up, b.down_up),
        _square(a.inside, None, b.mark_left @ a.source_right.mT, b.inside),
    )


def merge(block: Block, rows: int, columns: int) -> tuple[Block, Tensor]:
    """Merge a grid of blocks into one, pairs of neighbours at a time.

    Args:
        block: Single nodes, with axes (..., rows, columns) of blocks, each a power of two.
        rows: Rows of nodes.
        columns: Columns of nodes.

    Returns:
        The block without those axes, and for each of its nodes its index, row by row (rows * columns,).
    """
    order = torch.arange(rows * columns, device=block.inside.device).view(rows, columns, 1)
    while order.shape[0] > 1 or order.shape[1] > 1:
        if order.shape[1] > 1:
            halves = [Block(*(part[..., i::2, :, :] for part in block)) for i in (0, 1)]
            block, order = join(*halves), torch.cat([order[:, ::2], order[:, 1::2]], -1)
        if order.shape[0] > 1:
            halves = [Block(*(part[..., i::2, :, :, :] for part in block)).turned() for i in (0, 1)]
            block, order = join(*halves).turned(), torch.cat([order[::2], order[1::2]], -1)
    return Block(*(part[..., 0, 0, :, :] for part in block)), order.flatten()


def pass_through(gates: Sequence[Tensor], rows: int, columns: int) -> Block:
    """Return each node of a grid made larger as a block; the nodes that it has more let states pass straight on.

    Args:
        gates: source (..., X, Y, 2), transition (..., X, Y, 2, 2), mark (..., X, Y, 2) and direct (..., X, Y).
        rows: Rows of the larger grid, at least X.
        columns: Columns, at least Y.
    """
    direct = gates[3]
    more = (0, columns - direct.shape[-1], 0, rows - direct.shape[-2])
    inner = [gate.dim() - direct.dim() for gate in gates]
    source, transition, mark, read = (F.pad(g, (*[0] * (2 * n), *more)) for g, n in zip(gates, inner, strict=True))
    if any(more):
        outside = F.pad(torch.zeros_like(direct), more, value=1.0)[..., None, None]
        transition = transition + outside * torch.eye(2, dtype=direct.dtype, device=direct.device)
    weights = [*source.unbind(-1), *mark.unbind(-1), *transition.flatten(-2).unbind(-1), read]
    return Block(*(weight[..., None, None] for weight in weights))
