"""The head of anchors: scores and boxes at every cell of a map, the losses that teach them, and what is detected."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.ops import sigmoid_focal_loss

from ..core.errors import ConfigError
from .anchors import AnchorClass, AnchorGrid, Targets, decode, encode
from .boxes import wrap_angle
from .nms import rotated_nms

# Headings are told apart by the half turn they lie in, counted from here: no box's usual heading lies at its edge.
_BIN_START = math.pi / 4
_PRIOR = 0.01


@dataclass(frozen=True)
class Maps:
    """What the head says of each anchor.

    Attributes:
        scores: (B, A, K) logits of the K classes.
        residuals: (B, A, 7), as :func:`~scanweave.pointcloud.anchors.encode` gives; a heading may be half a turn off.
        directions: (B, A, 2) logits of the half turn that the heading lies in.
    """

    scores: Tensor
    residuals: Tensor
    directions: Tensor


@dataclass(frozen=True)
class Detections:
    """The objects found in one frame, by falling score.

    Attributes:
        boxes: (K, 7) float32 lidar boxes, heading in [-pi, pi).
        scores: (K,) in [0, 1].
        labels: (K,) int64.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.scores)


@dataclass(frozen=True)
class Suppression:
    """Which boxes become detections.

    Args:
        score: Least score.
        overlap: Of two boxes that overlap by more than this, seen from above, the better one stays, whatever their
            classes.
        before: At most this many boxes, the best, are compared.
        after: At most this many detections.

    Raises:
        ConfigError: ``score`` is not in (0, 1), ``overlap`` not in [0, 1], or a count is not positive.
    """

    score: float = 0.1
    overlap: float = 0.01
    before: int = 4096
    after: int = 500

    def __post_init__(self) -> None:
        if not (0 < self.score < 1 and 0 <= self.overlap <= 1 and min(self.before, self.after) > 0):
            raise ConfigError(f"{self}: expected 0 < score < 1, 0 <= overlap <= 1 and positive counts")


def direction_bin(heading: Tensor) -> Tensor:
    """Return 0 for headings in [pi/4, 5 pi/4), 1 for those opposite, int64."""
    return (torch.remainder(heading - _BIN_START, 2 * math.pi) >= math.pi).long()


def with_direction(heading: Tensor, direction: Tensor) -> Tensor:
    """Return headings turned by half a turn where they do not lie in the bin (...) int64; in [-pi, pi)."""
    return wrap_angle(torch.remainder(heading - _BIN_START, math.pi) + _BIN_START + math.pi * direction)


def box_loss(residuals: Tensor, targets: Tensor) -> Tensor:
    """Return the smooth L1 distance of residuals (P, 7) to targets (P, 7), summed over the seven, (P,).

    ``sum_i l(r_i - t_i)``, the last with ``sin(r_7 - t_7)``, so that half a turn costs nothing;
    ``l(d) = d^2 / 2 b`` below ``b = 1/9``, ``|d| - b / 2`` above.

    Source: Yan et al., SECOND (2018), section 3.2.1.
    """
    difference = residuals - targets
    difference = torch.cat((difference[:, :6], difference[:, 6:].sin()), 1)
    return nn.functional.smooth_l1_loss(difference, torch.zeros_like(difference), reduction="none", beta=1 / 9).sum(1)


class AnchorHead(nn.Module):
    """1 x 1 convolutions that tell of each anchor its classes' scores, the way to a box, and the heading's half turn.

    The loss is ``L_score + 2 L_box + 0.2 L_direction``: the focal loss (alpha 0.25, gamma 2) over all anchors that are
    not ignored, :func:`box_loss` and cross-entropy over those that stand for objects, each divided by the count of the
    latter in its frame (at least 1), as in SECOND's release, and averaged over frames.

    Args:
        in_channels: Channels of the map.
        classes: The classes' anchors.
        point_range: Least x, y, z and greatest x, y, z of the scene, metres.
        shape: Cells of the map along y and x.
        suppression: Which boxes become detections.

    Source:
        Yan et al., SECOND (2018), sections 3.1.3 and 3.2; Lin et al., Focal loss for dense object detection (2017).
    """

    def __init__(
        self,
        in_channels: int,
        classes: Sequence[AnchorClass],
        point_range: Sequence[float],
        shape: tuple[int, int],
        suppression: Suppression | None = None,
    ) -> None:
        super().__init__()
        self.anchors = AnchorGrid(classes, point_range, shape)
        self.suppression = suppression or Suppression()
        count = self.anchors.per_cell
        self.score = nn.Conv2d(in_channels, count * len(classes), 1)
        self.box = nn.Conv2d(in_channels, count * 7, 1)
        self.direction = nn.Conv2d(in_channels, count * 2, 1)
        # Nearly all anchors stand for background: at first every score says so.
        nn.init.constant_(self.score.bias, -math.log((1 - _PRIOR) / _PRIOR))  # type: ignore[arg-type]
        nn.init.normal_(self.box.weight, std=0.001)

    def forward(self, x: Tensor) -> Maps:
        """Describe the anchors on a map x (B, in_channels, Y, X).

        Raises:
            ValueError: The map has another size than the anchors' grid.
        """
        if tuple(x.shape[2:]) != self.anchors.shape:
            raise ValueError(f"head: the map has {tuple(x.shape[2:])} cells, expected {self.anchors.shape}")

        def per_anchor(made: Tensor) -> Tensor:
            return made.permute(0, 2, 3, 1).reshape(len(x), len(self.anchors), -1)

        return Maps(per_anchor(self.score(x)), per_anchor(self.box(x)), per_anchor(self.direction(x)))

    def loss(self, maps: Maps, boxes: Sequence[Tensor], labels: Sequence[Tensor]) -> dict[str, Tensor]:
        """Compare maps with the objects that are there.

        Args:
            maps: What :meth:`forward` gave.
            boxes: For each frame (M, 7) lidar boxes; M may be 0.
            labels: For each frame (M,) int64.

        Returns:
            ``loss``, and its weighted summands ``score``, ``box`` and ``direction``; scalars, float32.

        Raises:
            ValueError: Shapes do not fit, or a label is no class.
        """
        if len(boxes) != len(maps.scores):
            raise ValueError(f"boxes has {len(boxes)} frames, the maps have {len(maps.scores)}")
        targets = self.anchors.assign(boxes, labels)
        share = 1 / (targets.counts.clamp(min=1) * len(boxes))
        device = maps.scores.device
        objects = torch.cat(list(boxes)).to(device, torch.float32)[targets.object]
        kinds = torch.cat(list(labels)).to(device)[targets.object]
        at = targets.frame, targets.anchor
        anchors = self.anchors.at(targets.anchor)
        whole = self._score_loss(maps.scores.float(), targets, kinds)
        apart = box_loss(maps.residuals[at].float(), encode(objects, anchors))
        turned = nn.functional.cross_entropy(
            maps.directions[at].float(), direction_bin(objects[:, 6]), reduction="none"
        )
        parts = {
            "score": (whole * share).sum(),
            "box": 2.0 * (apart * share[targets.frame]).sum(),
            "direction": 0.2 * (turned * share[targets.frame]).sum(),
        }
        return {"loss": parts["score"] + parts["box"] + parts["direction"], **parts}

    def _score_loss(self, scores: Tensor, targets: Targets, kinds: Tensor) -> Tensor:
        """Return each frame's summed focal loss (B,)."""
        truth = torch.zeros_like(scores)
        truth[targets.frame, targets.anchor, kinds] = 1
        each = sigmoid_focal_loss(scores, truth, alpha=0.25, gamma=2)
        return each.masked_fill(targets.ignored.unsqueeze(-1), 0).sum((1, 2))

    @torch.no_grad()
    def decode(self, maps: Maps) -> list[Detections]:
        """Return what is detected in each frame: one class a box, by its best score."""
        return [self._decode(*frame) for frame in zip(maps.scores, maps.residuals, maps.directions, strict=True)]

    def _decode(self, scores: Tensor, residuals: Tensor, directions: Tensor) -> Detections:
        rule = self.suppression
        best, labels = scores.float().sigmoid().max(-1)
        chosen = (best >= rule.score).nonzero().squeeze(1)
        chosen = chosen[best[chosen].argsort(descending=True, stable=True)[: rule.before]]
        boxes = decode(residuals[chosen].float(), self.anchors.at(chosen))
        boxes[:, 6] = with_direction(boxes[:, 6], directions[chosen].argmax(-1))
        kept = rotated_nms(boxes, best[chosen], rule.overlap, after=rule.after)
        return Detections(boxes[kept], best[chosen][kept], labels[chosen][kept])
