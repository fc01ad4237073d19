"""Inverses of unit triangular matrices, many at once: the systems that chunks of corrections solve."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_BLOCK = 16


def unit_lower_inverse(lower: Tensor) -> Tensor:
    """Return ``(I + lower)^-1`` for what stands below the diagonals of (..., Q, Q) matrices, zeros elsewhere.

    Blocks are inverted by forward substitution over their rows, all blocks at once, and then joined in pairs: as exact
    as ``torch.linalg.solve_triangular``, which takes batches of small matrices one by one.
    """
    size = whole = lower.shape[-1]
    while whole > _BLOCK and whole % 2 == 0:
        whole //= 2
    if whole > _BLOCK:  # an odd number in the way: let the matrices grow to a size that halves
        whole = _BLOCK
        while whole < size:
            whole *= 2
        lower = F.pad(lower, (0, whole - size, 0, whole - size))
    else:
        whole = size
    return _inverse(lower.flatten(0, -3))[:, :size, :size].reshape(*lower.shape[:-2], size, size)


def _inverse(lower: Tensor) -> Tensor:
    count, size, _ = lower.shape
    if size <= _BLOCK:
        return _by_rows(lower)
    half = size // 2
    blocks = _inverse(torch.cat([lower[:, :half, :half], lower[:, half:, half:]]))
    first, second = blocks[:count], blocks[count:]
    corner = second @ (lower[:, half:, :half] @ first)
    upper = torch.cat([first, torch.zeros_like(first)], -1)
    return torch.cat([upper, torch.cat([-corner, second], -1)], -2)


def _by_rows(lower: Tensor) -> Tensor:
    # Matrices last: each step then is one product along memory.
    rows = lower.permute(1, 2, 0).contiguous()
    inverse = torch.zeros_like(rows)
    inverse.diagonal().fill_(1)
    for i in range(1, rows.shape[0]):
        torch.sum(rows[i, :i, None] * inverse[:i, :i], 0, out=inverse[i, :i]).neg_()
    return inverse.permute(2, 0, 1)
