"""The overlap of rotated boxes: areas, and intersections over unions, from above and in space."""

from __future__ import annotations

import torch
from torch import Tensor

_SIGNS = ((1.0, 1.0), (-1.0, 1.0), (-1.0, -1.0), (1.0, -1.0))
# Pairs of boxes worked on at once, so that memory stays bounded for thousands of boxes against thousands.
_CHUNK = 1 << 20


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
    dx, dy = (a[..., 0] - b[..., 0]), (a[..., 1] - b[..., 1])
    centre = torch.stack((dx * cos + dy * sin, dy * cos - dx * sin), -1)
    turn = a[..., 4] - b[..., 4]
    cos, sin = turn.cos()[..., None], turn.sin()[..., None]
    signs = torch.tensor(_SIGNS, dtype=a.dtype, device=a.device) / 2
    local = a[..., None, 2:4] * signs
    x = centre[..., 0, None] + local[..., 0] * cos - local[..., 1] * sin
    y = centre[..., 1, None] + local[..., 0] * sin + local[..., 1] * cos
    half = b[..., 2:4] / 2
    hx, hy = half[..., 0, None], half[..., 1, None]
    rise_x, rise_y = x.roll(-1, -1) - x, y.roll(-1, -1) - y

    def crossing(at: Tensor, start: Tensor, rise: Tensor) -> Tensor:
        return ((at - start) / torch.where(rise == 0, torch.ones_like(rise), rise)).clamp(0, 1)

    first, second = crossing(-hx, x, rise_x), crossing(hx, x, rise_x)
    low, high = crossing(-hy, y, rise_y), crossing(hy, y, rise_y)
    zero, one = torch.zeros_like(x), torch.ones_like(x)
    # Both coordinates are clamped at every cut, so a cut in excess splits a trapezoid in two and adds nothing.
    cuts = torch.stack((zero, first, second, low, high, one), -1).sort(-1).values
    px = (x[..., None] + cuts * rise_x[..., None]).clamp(-hx[..., None], hx[..., None])
    py = (y[..., None] + cuts * rise_y[..., None]).clamp(-hy[..., None], hy[..., None])
    strips = (px[..., 1:] + px[..., :-1]) * (py[..., 1:] - py[..., :-1])
    return (strips.sum((-2, -1)) / 2).clamp(min=0)


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
    with torch.no_grad():
        reach = (a[:, 3:5].norm(dim=-1)[:, None] + b[:, 3:5].norm(dim=-1)) / 2
        apart = (a[:, None, :2] - b[None, :, :2]).norm(dim=-1)
        near = apart <= reach
        if ordered:
            near = near.triu(1)
        i, j = torch.nonzero(near, as_tuple=True)
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
