"""What a block of a grid does to the states that cross it, in a depth that grows with the logarithm of its sides."""

from __future__ import annotations

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


def blocks_of(source: Tensor, transition: Tensor, mark: Tensor, direct: Tensor) -> Block:
    """Return each node of a grid as a block of its own.

    Args:
        source: (..., X, Y, 2).
        transition: (..., X, Y, 2, 2).
        mark: (..., X, Y, 2).
        direct: (..., X, Y).
    """
    pairs = [gate[..., i, None, None] for gate in (source, mark) for i in (0, 1)]
    through = [transition[..., i, j, None, None] for i in (0, 1) for j in (0, 1)]
    return Block(*pairs, *through, direct[..., None, None])


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


def pass_through(source: Tensor, transition: Tensor, mark: Tensor, direct: Tensor, rows: int, columns: int) -> Block:
    """Return :func:`blocks_of` on a larger grid; the nodes that it has more let states pass straight on.

    Args:
        source: (..., X, Y, 2), as the others in :func:`blocks_of`.
        rows: Rows of the larger grid, at least X.
        columns: Columns, at least Y.
    """
    more = (0, columns - direct.shape[-1], 0, rows - direct.shape[-2])
    gates = [
        F.pad(gate, (*[0] * (2 * inner), *more))
        for gate, inner in ((source, 1), (transition, 2), (mark, 1), (direct, 0))
    ]
    if any(more):
        outside = F.pad(torch.zeros_like(direct), more, value=1.0)[..., None, None]
        gates[1] = gates[1] + outside * torch.eye(2, dtype=direct.dtype, device=direct.device)
    return blocks_of(*gates)
