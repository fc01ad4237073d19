"""The overlap of rotated boxes: areas, and intersections over unions, from above and in space."""

from __future__ import annotations

import torch
from torch import Tensor

# Pairs of boxes worked on at once, so that memory stays bounded for thousands of boxes against thousands.
_CHUNK = 1 << 20
# Fewer pairs than this are all looked at: sorting would take longer.
_FEW = 1 << 16


def overlap_area(a: Tensor, b: Tensor) -> Tensor:
    """Return the area that pairs of rotated rectangles share.

    In the frame of ``b``, whose half sizes are ``h``, with ``c`` clamping to ``[-h, h]``:
    ``area = closed integral over a's outline of c(x) d c(y)`` (Green's theorem on the indicator of ``b``), a sum of
    trapezoids along a's four edges, each cut where it crosses ``x = -h`` and ``x = h``. Nothing is decided by
    comparing: identical and touching rectangles are no special case, and the gradient is autograd's.

    Args:
        a: (..., 5) x, y, length, width, heading; metres and radians, sizes >= 0.
        b: As ``a``, broadcast against it.

    Returns:
        (...) area, square metres, >= 0.

    Raises:
        ValueError: The last axis is not 5 long.
    """
    for name, boxes in (("a", a), ("b", b)):
        if boxes.shape[-1:] != (5,):
            raise ValueError(f"{name} has shape {tuple(boxes.shape)}, expected (..., 5): x, y, length, width, heading")
    cos, sin = b[..., 4].cos(), b[..., 4].sin()
    dx, dy = a[..., 0] - b[..., 0], a[..., 1] - b[..., 1]
    turn = a[..., 4] - b[..., 4]
    half_x, half_y = b[..., 2] / 2, b[..., 3] / 2
    x, step_x, low_x, high_x = _outline(dx * cos + dy * sin, a[..., 2] * turn.cos(), -a[..., 3] * turn.sin(), half_x)
    y, step_y, low_y, high_y = _outline(dy * cos - dx * sin, a[..., 2] * turn.sin(), a[..., 3] * turn.cos(), half_y)
    # The four cuts in order; each pair is in order already.
    inner, outer = torch.maximum(low_x, low_y), torch.minimum(high_x, high_y)
    ordered = (
        torch.minimum(low_x, low_y),
        torch.minimum(inner, outer),
        torch.maximum(inner, outer),
        torch.maximum(high_x, high_y),
    )
    cuts = torch.stack((torch.zeros_like(x), *ordered, torch.ones_like(x)))
    # Both coordinates are clamped at every cut, so a cut in excess splits a trapezoid in two and adds nothing.
    px, py = (x + cuts * step_x).clamp(-half_x, half_x), (y + cuts * step_y).clamp(-half_y, half_y)
    strips = (px[1:] + px[:-1]) * (py[1:] - py[:-1])
    return (strips.sum((0, 1)) / 2).clamp(min=0)


def _outline(center: Tensor, length: Tensor, width: Tensor, half: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Walk around a rectangle along one axis.

    Args:
        center: (...) its centre.
        length: (...) what its length extends along the axis, signed.
        width: (...) what its width does.
        half: (...) half of the other rectangle's extent.

    Returns:
        The corners, the steps from each to the next, and the shares of a step at which it enters and leaves
        ``[-half, half]``, in order and within 0 and 1; (4, ...) each.
    """
    along, across = (length + width) / 2, (length - width) / 2
    start = torch.stack((center + along, center - across, center - along, center + across))
    step = start.roll(-1, 0) - start
    divisor = torch.where(step == 0, 1.0, step)
    first, second = ((-half - start) / divisor).clamp(0, 1), ((half - start) / divisor).clamp(0, 1)
    return start, step, torch.minimum(first, second), torch.maximum(first, second)


def _flat(boxes: Tensor) -> Tensor:
    """Return what lidar boxes (..., 7) are from above (..., 5)."""
    return boxes[..., [0, 1, 3, 4, 6]]


def _ratio(shared: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Return shared / (a + b - shared) in [0, 1], zero where both are empty."""
    shared = torch.minimum(shared, torch.minimum(a, b))
    union = a + b - shared
    return shared / torch.where(union > 0, union, torch.ones_like(union))


def aligned_iou(a: Tensor, b: Tensor, space: str = "3d") -> Tensor:
    """Return the intersection over union of each pair of lidar boxes.

    Args:
        a: (..., 7) lidar boxes: x, y, z, length, width, height, heading.
        b: As ``a``, broadcast against it.
        space: "bev" for the rectangles seen from above, "3d" for the boxes.

    Returns:
        (...) in [0, 1], differentiable; 0 for boxes without extent.

    Raises:
        ValueError: ``space`` is another word, or a last axis is not 7 long.
    """
    if space not in ("bev", "3d"):
        raise ValueError(f"space is {space!r}, expected 'bev' or '3d'")
    for name, boxes in (("a", a), ("b", b)):
        if boxes.shape[-1:] != (7,):
            raise ValueError(f"{name} has shape {tuple(boxes.shape)}, expected (..., 7)")
    shared = overlap_area(_flat(a), _flat(b))
    size_a, size_b = a[..., 3] * a[..., 4], b[..., 3] * b[..., 4]
    if space == "3d":
        top = torch.minimum(a[..., 2] + a[..., 5] / 2, b[..., 2] + b[..., 5] / 2)
        bottom = torch.maximum(a[..., 2] - a[..., 5] / 2, b[..., 2] - b[..., 5] / 2)
        shared = shared * (top - bottom).clamp(min=0)
        size_a, size_b = size_a * a[..., 5], size_b * b[..., 5]
    return _ratio(shared, size_a, size_b)


def _near(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return i, j (K,) of the pairs whose circles around the rectangles meet.

    Only boxes that stand near each other along x are looked at: where each one's begin and end in the order of x is
    found by bisection.
    """
    reach_a, reach_b = a[:, 3:5].norm(dim=-1) / 2, b[:, 3:5].norm(dim=-1) / 2
    if len(a) * len(b) <= _FEW:
        apart = torch.hypot(a[:, :1] - b[:, 0], a[:, 1:2] - b[:, 1])
        i, j = torch.nonzero(apart <= reach_a[:, None] + reach_b, as_tuple=True)
        return i, j
    reach = reach_a + reach_b.nan_to_num().max()
    order = b[:, 0].argsort()
    along = b[order, 0]
    first = torch.searchsorted(along, a[:, 0] - reach)
    counts = (torch.searchsorted(along, a[:, 0] + reach, right=True) - first).clamp(min=0)
    found = []
    for rows in torch.arange(len(a), device=a.device).split(max(1, _CHUNK // len(b))):
        count = counts[rows]
        i = rows.repeat_interleave(count)
        start = (first[rows] - count.cumsum(0) + count).repeat_interleave(count)
        j = order[start + torch.arange(len(i), device=a.device)]
        apart = torch.hypot(a[:, 0][i] - b[:, 0][j], a[:, 1][i] - b[:, 1][j])
        near = apart <= reach_a[i] + reach_b[j]
        found.append((i[near], j[near]))
    return torch.cat([i for i, _ in found]), torch.cat([j for _, j in found])


def near_overlaps(a: Tensor, b: Tensor, space: str, ordered: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Return the overlaps of the lidar boxes that are near enough to have one.

    Args:
        a: (N, 7) lidar boxes.
        b: (M, 7) lidar boxes.
        space: "bev" or "3d".
        ordered: Only pairs whose first index is the smaller one.

    Returns:
        i, j (K,) int64 of the pairs whose circles around the rectangles meet, and their intersections over unions (K,).
    """
    i, j = _near(a.detach(), b.detach())
    if ordered:
        i, j = i[i < j], j[i < j]
    pieces = [aligned_iou(a[m], b[n], space) for m, n in zip(i.split(_CHUNK), j.split(_CHUNK), strict=True)]
    return i, j, torch.cat(pieces)


def box_iou(a: Tensor, b: Tensor, space: str = "3d") -> Tensor:
    """Return the intersection over union of every lidar box of ``a`` with every one of ``b``.

    Args:
        a: (N, 7) lidar boxes.
        b: (M, 7) lidar boxes.
        space: "bev" or "3d".

    Returns:
        (N, M) in [0, 1], differentiable.

    Raises:
        ValueError: As `aligned_iou`.
    """
    i, j, shared = near_overlaps(a, b, space)
    return a.new_zeros(a.shape[0], b.shape[0]).index_put((i, j), shared)
