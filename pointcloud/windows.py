"""How LION lays voxels out as sequences: sorted by windows, cut into groups of one length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .voxels import Voxels


def window_order(voxels: Voxels, window: Sequence[int], along: str, shifted: bool = False) -> Tensor:
    """Sort voxels by the window they lie in, and by their place in it.

    Windows follow each other along x, then y, then z (or y, x, z), and so do the voxels of a window; batch entries are
    kept apart.

    Args:
        voxels: The voxels.
        window: Voxels of a window along x, y and z.
        along: ``x`` or ``y``, the slowest axis.
        shifted: Whether the windows begin half a window before the grid.

    Returns:
        (V,) int64, the row of ``voxels`` at each place of the order.

    Source:
        Liu et al., LION: linear group RNN for 3D object detection in point clouds (2024), section 3.2.
    """
    batch, *places = voxels.coords[:, [0, 3, 2, 1]].unbind(1)
    shape = voxels.shape[::-1]
    counts = [-(-n // w) + 1 for n, w in zip(shape, window, strict=True)]
    places = [place + w // 2 for place, w in zip(places, window, strict=True)] if shifted else places
    axes = (0, 1, 2) if along == "x" else (1, 0, 2)
    key = batch
    for axis in axes:
        key = key * counts[axis] + places[axis] // window[axis]
    for axis in axes:
        key = key * window[axis] + places[axis] % window[axis]
    return torch.argsort(key)  # no two voxels share a key


@dataclass(frozen=True)
class Groups:
    """Sequences of one length each, cut from batch entries of any length.

    Attributes:
        take: (G * size,) int64, the place in the order whose voxel stands there.
        put: (V,) int64, where each place of the order stands.
        size: Length of a group.
    """

    take: Tensor
    put: Tensor
    size: int


def cut_groups(counts: Tensor, size: int) -> Groups:
    """Cut batch entries into groups.

    Each entry fills whole groups. What its last one lacks stands there as one group earlier; in an entry of less than
    one group its voxels begin again.

    Args:
        counts: (B,) int64, voxels of each batch entry.
        size: Voxels of a group.

    Returns:
        The groups.

    Source:
        Liu et al., LION (2024), section 3.2; padding: the authors' release.
    """
    padded = -(-counts // size) * size
    starts, ends = torch.cumsum(counts, 0) - counts, torch.cumsum(padded, 0)
    place = torch.arange(int(padded.sum()), device=counts.device)
    entry = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), padded)
    local, count = place - (ends - padded)[entry], counts[entry]
    again = torch.where(padded[entry] > size, local - size, (local - count) % count.clamp(min=1))
    take = starts[entry] + torch.where(local < count, local, again)
    entry = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
    put = torch.arange(len(entry), device=counts.device) + (ends - padded - starts)[entry]
    return Groups(take, put, size)
