"""Non-maximum suppression of rotated boxes."""

from __future__ import annotations

import torch
from torch import Tensor

from .overlap import near_overlaps


def rotated_nms(
    boxes: Tensor, scores: Tensor, threshold: float, *, before: int | None = None, after: int | None = None
) -> Tensor:
    """Keep each box that no better kept box overlaps by more than a threshold, seen from above.

    ``kept_j = not any_{i before j} (kept_i and IoU_ij > threshold)``, in order of falling scores. The equation has one
    solution; it is reached by putting it into itself, each round settling at least one more box, without leaving the
    boxes' device.

    Args:
        boxes: (N, 7) lidar boxes.
        scores: (N,); among equal ones the earlier box comes first.
        threshold: Intersection over union above which the worse box goes.
        before: Only this many of the best boxes are looked at; None looks at all.
        after: At most this many are kept; None keeps all that remain.

    Returns:
        (K,) int64 indices of the kept boxes, by falling score.

    Raises:
        ValueError: Shapes do not fit, or a box or a score is not finite.
    """
    if boxes.dim() != 2 or boxes.shape[1] != 7:
        raise ValueError(f"boxes has shape {tuple(boxes.shape)}, expected (N, 7)")
    if scores.shape != boxes.shape[:1]:
        raise ValueError(f"scores has shape {tuple(scores.shape)}, expected ({boxes.shape[0]},)")
    if not bool(torch.isfinite(boxes).all() & torch.isfinite(scores).all()):
        raise ValueError("boxes or scores hold values that are not finite")
    order = scores.detach().argsort(descending=True, stable=True)[:before]
    ranked = boxes.detach()[order]
    if ranked.dtype in (torch.float16, torch.bfloat16):
        ranked = ranked.float()
    better, worse, shared = near_overlaps(ranked, ranked, "bev", ordered=True)
    clash = shared > threshold
    better, worse = better[clash], worse[clash]
    kept = torch.ones(len(order), dtype=torch.bool, device=boxes.device)
    while True:
        settled = torch.ones_like(kept)
        settled[worse[kept[better]]] = False
        if bool((settled == kept).all()):
            return order[kept][:after]
        kept = settled
