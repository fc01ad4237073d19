"""The anchor head: class, box and direction at every anchor, their losses, and the boxes they mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import sigmoid_focal_loss

from ..core.errors import ConfigError
from .anchors import CODE, AnchorClass, assign, decode, encode, make_anchors
from .boxes import wrap_angle
from .nms import rotated_nms

DIRECTION_OFFSET = math.pi / 4
"""Headings from here to half a turn on are direction 0."""


@dataclass(frozen=True)
class Detections:
    """What was found in one frame.

    Attributes:
        boxes: (K, 7) lidar boxes, metres and radians.
        scores: (K,) in (0, 1), falling.
        labels: (K,) int64, the class's number.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.scores)


@dataclass(frozen=True)
class Maps:
    """What the head says of every anchor.

    Attributes:
        scores: (B, N, classes), before the sigmoid.
        codes: (B, N, 7).
        directions: (B, N, 2), before the softmax.
    """

    scores: Tensor
    codes: Tensor
    directions: Tensor


def direction_of(heading: Tensor) -> Tensor:
    """Return in which half of the circle a heading lies, 0 or 1."""
    return (torch.remainder(heading - DIRECTION_OFFSET, 2 * math.pi) >= math.pi).long()


class AnchorHead(nn.Module):
    """One 1 x 1 convolution each for classes, boxes and directions.

    Loss of a frame, over its anchors and divided by the number of those that are told an object (1 at least):
    ``sum focal(scores) + 2 sum smooth_l1(codes) + 0.2 sum cross_entropy(directions)``; headings enter as
    ``sin(a - b) = sin a cos b - cos a sin b``, which half a turn does not change, and the direction tells the halves
    apart.

    Args:
        in_channels: Channels of the map.
        classes: What is looked for.
        area: Least x, y and greatest x, y of the map, metres.
        cells: The map's cells along y and x.
        score: Least score of a detection.
        overlap: Of two detections that overlap by more than this, seen from above, the better one stays.
        before: The most detections that are compared with each other.
        after: The most detections of a frame.

    Raises:
        ConfigError: There is no class, or a name comes twice.

    Source:
        Yan et al., SECOND: sparsely embedded convolutional detection (2018), sections 3.1.4, 3.2 and 3.3; Lin et al.,
        Focal loss for dense object detection (2017), equation 5.
    """

    anchors: Tensor

    def __init__(
        self,
        in_channels: int,
        classes: Sequence[AnchorClass],
        area: Sequence[float],
        cells: tuple[int, int],
        *,
        score: float = 0.1,
        overlap: float = 0.01,
        before: int = 4096,
        after: int = 500,
    ) -> None:
        super().__init__()
        names = [c.name for c in classes]
        if not names or len(set(names)) != len(names):
            raise ConfigError(f"AnchorHead: classes are {names}, expected one or more, each once")
        self.classes, self.cells = tuple(classes), cells
        self.score, self.overlap, self.before, self.after = score, overlap, before, after
        self.register_buffer("anchors", make_anchors(classes, area, cells), persistent=False)
        count = self.anchors.shape[2]
        self.conv_cls = nn.Conv2d(in_channels, count * len(classes), 1)
        self.conv_box = nn.Conv2d(in_channels, count * CODE, 1)
        self.conv_dir = nn.Conv2d(in_channels, count * 2, 1)
        nn.init.constant_(_bias(self.conv_cls), -math.log((1 - 0.01) / 0.01))
        nn.init.normal_(self.conv_box.weight, std=0.001)

    def forward(self, x: Tensor) -> Maps:
        """Say something of every anchor.

        Args:
            x: (B, in_channels, Y, X).

        Returns:
            The maps; anchors in the order of y, x, class, rotation.

        Raises:
            ValueError: The map has other cells.
        """
        if tuple(x.shape[2:]) != self.cells:
            raise ValueError(f"AnchorHead: the map has {tuple(x.shape[2:])} cells, expected {self.cells} (y, x)")
        widths = (len(self.classes), CODE, 2)
        convolutions = (self.conv_cls, self.conv_box, self.conv_dir)
        found = [
            conv(x).permute(0, 2, 3, 1).reshape(x.shape[0], -1, width)
            for conv, width in zip(convolutions, widths, strict=True)
        ]
        return Maps(*found)

    def targets(self, boxes: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return what each anchor of a frame is told: the object's row as of :func:`assign`, and its class's number.

        Args:
            boxes: (M, 7) lidar boxes.
            labels: (M,) int64.

        Returns:
            (N,) int64 both; the class is -1 where there is none.
        """
        rows = torch.full(self.anchors.shape[:3], -1, dtype=torch.int64, device=boxes.device)
        first = 0
        for number, kind in enumerate(self.classes):
            own = (labels == number).nonzero().squeeze(1)
            span = slice(first, first + len(kind.rotations))
            found = assign(self.anchors[:, :, span].flatten(0, 2), boxes[own], kind.matched, kind.unmatched)
            if len(own):
                found = torch.where(found >= 0, own[found.clamp(min=0)], found)
            rows[:, :, span] = found.view(*self.cells, -1)
            first = span.stop
        rows = rows.flatten()
        told = torch.full_like(rows, -1)
        told[rows >= 0] = labels[rows[rows >= 0]]
        return rows, told

    def loss(self, maps: Maps, boxes: Sequence[Tensor], labels: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return the weighted losses of a batch, each the mean over its frames.

        Args:
            maps: What :meth:`forward` said.
            boxes: Of each frame (M, 7) lidar boxes; M may be 0.
            labels: Of each frame (M,) int64.

        Returns:
            ``classes``, ``boxes`` and ``directions``, scalars; finite without any box.
        """
        totals = {name: maps.scores.new_zeros(()) for name in ("classes", "boxes", "directions")}
        anchors = self.anchors.flatten(0, 2)
        for entry, (own, kinds) in enumerate(zip(boxes, labels, strict=True)):
            rows, told = self.targets(own, kinds)
            positive, learned = rows >= 0, rows >= -1
            share = 1 / (max(1, int(positive.sum())) * len(boxes))
            wanted = F.one_hot(told[learned] + 1, len(self.classes) + 1)[:, 1:].to(maps.scores.dtype)
            focal = sigmoid_focal_loss(maps.scores[entry][learned], wanted, alpha=0.25, gamma=2, reduction="sum")
            totals["classes"] = totals["classes"] + focal * share
            if not len(own):
                continue
            code, direction, at = maps.codes[entry][positive], maps.directions[entry][positive], anchors[positive]
            truth = encode(own[rows[positive]].to(code.dtype), at)
            near = F.smooth_l1_loss(code[:, :6], truth[:, :6], reduction="sum", beta=1 / 9)
            turn = torch.sin(code[:, 6] - truth[:, 6])
            turned = F.smooth_l1_loss(turn, torch.zeros_like(turn), reduction="sum", beta=1 / 9)
            totals["boxes"] = totals["boxes"] + 2.0 * (near + turned) * share
            half = F.cross_entropy(direction, direction_of(own[rows[positive], 6]), reduction="sum")
            totals["directions"] = totals["directions"] + 0.2 * half * share
        return totals

    @torch.no_grad()
    def decode(self, maps: Maps) -> list[Detections]:
        """Return the detections of each frame: scores above the least, the best of those that overlap."""
        found = []
        anchors = self.anchors.flatten(0, 2)
        for scores, codes, directions in zip(maps.scores, maps.codes, maps.directions, strict=True):
            best, labels = scores.float().sigmoid().max(1)
            kept = (best >= self.score).nonzero().squeeze(1)
            boxes = decode(codes[kept].float(), anchors[kept])
            half = directions[kept].argmax(1)
            # The code's heading is right but for half turns, which the direction settles.
            heading = torch.remainder(boxes[:, 6] - DIRECTION_OFFSET, math.pi) + DIRECTION_OFFSET + math.pi * half
            boxes = torch.cat([boxes[:, :6], wrap_angle(heading).unsqueeze(1)], 1)
            chosen = rotated_nms(boxes, best[kept], self.overlap, before=self.before, after=self.after)
            found.append(Detections(boxes[chosen], best[kept][chosen], labels[kept][chosen]))
        return found


def _bias(layer: nn.Conv2d) -> Tensor:
    assert layer.bias is not None
    return layer.bias
