"""Anchors: boxes of each class's usual size all over a map, which objects they stand for, and offsets from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..core.errors import ConfigError

# A box larger than its anchor by more than this factor is a network gone astray; exp must not overflow there.
_MOST_LOG = math.log(1000 / 16)
_QUARTER_TURN = math.pi / 2


@dataclass(frozen=True)
class AnchorClass:
    """A class of objects, and the anchors that look for it.

    Attributes:
        name: The class.
        size: Length, width and height, metres.
        bottom: z of the anchors' lower side, metres.
        matched: An anchor that overlaps an object by at least this stands for it.
        unmatched: An anchor that overlaps every object by less stands for background; between the two for neither.
        rotations: An anchor with each of these headings stands in every cell, radians.

    Raises:
        ConfigError: A size is not positive, or the thresholds are not 0 < unmatched <= matched <= 1.
    """

    name: str
    size: tuple[float, float, float]
    bottom: float
    matched: float
    unmatched: float
    rotations: tuple[float, ...] = (0.0, _QUARTER_TURN)

    def __post_init__(self) -> None:
        if len(self.size) != 3 or not min(self.size) > 0:
            raise ConfigError(f"anchors: {self.name} has size {self.size}, expected positive length, width and height")
        if not 0 < self.unmatched <= self.matched <= 1:
            raise ConfigError(
                f"anchors: {self.name} has unmatched {self.unmatched} and matched {self.matched}, expected "
                "0 < unmatched <= matched <= 1"
            )


KITTI_CLASSES = (
    AnchorClass("Car", (3.9, 1.6, 1.56), -1.78, 0.6, 0.45),
    AnchorClass("Pedestrian", (0.8, 0.6, 1.73), -0.6, 0.5, 0.35),
    AnchorClass("Cyclist", (1.76, 0.6, 1.73), -0.6, 0.5, 0.35),
)
"""Sizes, heights and overlaps as SECOND has them for KITTI."""


@dataclass(frozen=True)
class Targets:
    """What the anchors of a batch stand for: P of them for objects, every other one for background or for nothing.

    Attributes:
        frame: (P,) int64, whose anchor it is.
        anchor: (P,) int64, its place in :class:`AnchorGrid`'s order.
        object: (P,) int64, row of its object among those of all frames put together.
        ignored: (B, A) bool, anchors that count neither as object nor as background.
        counts: (B,) int64, anchors of each frame that stand for objects.
    """

    frame: Tensor
    anchor: Tensor
    object: Tensor
    ignored: Tensor
    counts: Tensor


def _scale(anchors: Tensor) -> Tensor:
    """Return what an offset of 1 along x, y and z is in metres, (..., 3)."""
    diagonal = anchors[..., 3:5].norm(dim=-1)
    return torch.stack((diagonal, diagonal, anchors[..., 5]), -1)


def encode(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Return what leads from anchors to boxes.

    ``((x - x_a) / d, (y - y_a) / d, (z - z_a) / h_a, log l / l_a, log w / w_a, log h / h_a, heading - heading_a)``,
    ``d = sqrt(l_a^2 + w_a^2)``.

    Args:
        boxes: (..., 7) lidar boxes.
        anchors: (..., 7) lidar boxes.

    Returns:
        (..., 7).

    Source: Yan et al., SECOND (2018), section 3.2.1, equation 1, after VoxelNet (2018).
    """
    place = (boxes[..., :3] - anchors[..., :3]) / _scale(anchors)
    size = (boxes[..., 3:6] / anchors[..., 3:6]).log()
    return torch.cat((place, size, boxes[..., 6:] - anchors[..., 6:]), -1)


def decode(residuals: Tensor, anchors: Tensor) -> Tensor:
    """Return boxes (..., 7): :func:`encode` undone, sizes at most 62.5 times the anchors'."""
    place = residuals[..., :3] * _scale(anchors) + anchors[..., :3]
    size = residuals[..., 3:6].clamp(max=_MOST_LOG).exp() * anchors[..., 3:6]
    return torch.cat((place, size, residuals[..., 6:] + anchors[..., 6:]), -1)


def upright_extent(length: Tensor, width: Tensor, heading: Tensor) -> tuple[Tensor, Tensor]:
    """Return the extents along x and y of boxes turned to the nearest axis."""
    off = torch.remainder(heading + _QUARTER_TURN, math.pi) - _QUARTER_TURN
    along = off.abs() < math.pi / 4
    return torch.where(along, length, width), torch.where(along, width, length)


class AnchorGrid(nn.Module):
    """The anchors of a map, one for each class and rotation at the centre of every cell.

    Anchor ``((i_y X + i_x) C + c) R + r`` stands in cell (i_y, i_x) for class c with rotation r. They are never laid
    out as a whole: a place in this order says what an anchor is.

    Args:
        classes: The classes.
        point_range: Least x, y, z and greatest x, y, z of the scene, metres; z is not used.
        shape: Cells along y and x.

    Raises:
        ConfigError: There is no class, or one has another number of rotations, or two have one name.
    """

    sizes: Tensor
    bottoms: Tensor
    rotations: Tensor
    thresholds: Tensor

    def __init__(self, classes: Sequence[AnchorClass], point_range: Sequence[float], shape: tuple[int, int]) -> None:
        super().__init__()
        names = [one.name for one in classes]
        if not names or len(set(names)) != len(names):
            raise ConfigError(f"anchors: classes are {names}, expected one or more, each once")
        for one in classes:
            if len(one.rotations) != len(classes[0].rotations) or not one.rotations:
                raise ConfigError(
                    f"anchors: {one.name} has {len(one.rotations)} rotations and {classes[0].name} has "
                    f"{len(classes[0].rotations)}, expected equally many, at least one"
                )
        self.classes, self.shape = tuple(classes), shape
        self.low = (point_range[0], point_range[1])
        self.step = ((point_range[3] - point_range[0]) / shape[1], (point_range[4] - point_range[1]) / shape[0])
        self.per_cell = len(classes) * len(classes[0].rotations)
        tables = {
            "sizes": [one.size for one in classes],
            "bottoms": [one.bottom for one in classes],
            "rotations": [one.rotations for one in classes],
            "thresholds": [(one.matched, one.unmatched) for one in classes],
        }
        for name, rows in tables.items():
            # What the classes say; no weights.
            self.register_buffer(name, torch.tensor(rows, dtype=torch.float32), persistent=False)

    def __len__(self) -> int:
        return self.shape[0] * self.shape[1] * self.per_cell

    def at(self, index: Tensor) -> Tensor:
        """Return the anchors (..., 7) at places (...) int64 of the order."""
        count = self.rotations.shape[1]
        cell, which = index // self.per_cell, index % self.per_cell
        kind, turn = which // count, which % count
        x, y = self._centers(1)[cell % self.shape[1]], self._centers(0)[cell // self.shape[1]]
        size = self.sizes[kind]
        z = self.bottoms[kind] + size[..., 2] / 2
        return torch.cat((torch.stack((x, y, z), -1), size, self.rotations[kind, turn].unsqueeze(-1)), -1)

    def _centers(self, axis: int) -> Tensor:
        """Return the cells' centres along y (0) or x (1)."""
        place = torch.arange(self.shape[axis], device=self.sizes.device, dtype=self.sizes.dtype) + 0.5
        return place * self.step[1 - axis] + self.low[1 - axis]

    @torch.no_grad()
    def assign(self, boxes: Sequence[Tensor], labels: Sequence[Tensor]) -> Targets:
        """Say what each anchor stands for.

        Anchors see the objects of their own class, both turned to the nearest axis, from above. One stands for the
        object that it overlaps most, if by ``matched`` or more; those that overlap an object most of all, however
        little, stand for it before any other.

        Args:
            boxes: For each frame (M, 7) lidar boxes.
            labels: For each frame (M,) int64, the objects' classes.

        Returns:
            The targets. An object that no anchor overlaps has none.

        Raises:
            ValueError: Shapes do not fit, or a label is no class.

        Source:
            Yan et al., SECOND (2018), section 3.2, and its release for the overlap; Ren et al., Faster R-CNN (2015),
            section 3.1.2.
        """
        objects, kinds, frames = self._join(boxes, labels)
        count, total, none = len(boxes), len(self), len(objects)
        overlap, place = self._overlaps(objects, kinds)
        place = place + (frames * total).view(-1, 1, 1, 1)
        most = overlap.flatten(1).amax(1) if overlap.numel() else overlap.new_ones(none)
        forced = (overlap == most.view(-1, 1, 1, 1)) & (overlap > 0)
        matched, unmatched = self.thresholds[kinds].view(-1, 2, 1, 1, 1).unbind(1)
        # An object's best anchors outweigh every other claim on them; among equal claims the first object's holds.
        claim = torch.where(forced, overlap + 2, overlap)
        strongest = claim.new_zeros(count * total).scatter_reduce_(0, place.flatten(), claim.flatten(), "amax")
        wins = (forced | (overlap >= matched)) & (claim == strongest[place])
        owner = torch.arange(none, device=objects.device).view(-1, 1, 1, 1).expand_as(place)
        first = torch.full((count * total,), none, device=objects.device)
        first.scatter_reduce_(0, place[wins], owner[wins], "amin")
        positive = (first < none).nonzero().squeeze(1)
        ignored = torch.zeros(count * total, dtype=torch.bool, device=objects.device)
        ignored[place[overlap >= unmatched]] = True
        ignored[positive] = False
        frame = positive // total
        counts = torch.bincount(frame, minlength=count)
        return Targets(frame, positive % total, first[positive], ignored.view(count, total), counts)

    def _join(self, boxes: Sequence[Tensor], labels: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return the boxes, labels and frames of all objects."""
        if len(boxes) != len(labels) or not boxes:
            raise ValueError(
                f"boxes has {len(boxes)} frames and labels {len(labels)}, expected equally many, one or more"
            )
        for index, (box, label) in enumerate(zip(boxes, labels, strict=True)):
            if box.dim() != 2 or box.shape[1] != 7 or label.shape != box.shape[:1]:
                raise ValueError(
                    f"frame {index}: boxes has shape {tuple(box.shape)} and labels {tuple(label.shape)}, expected "
                    "(M, 7) and (M,)"
                )
            if len(label) and not 0 <= int(label.min()) <= int(label.max()) < len(self.classes):
                raise ValueError(f"frame {index}: labels are {label.tolist()}, expected 0 to {len(self.classes) - 1}")
        device = self.sizes.device
        counts = torch.tensor([len(box) for box in boxes], device=device)
        frames = torch.repeat_interleave(torch.arange(len(boxes), device=device), counts)
        return torch.cat(list(boxes)).to(self.sizes), torch.cat(list(labels)).to(device), frames

    def _overlaps(self, objects: Tensor, kinds: Tensor) -> tuple[Tensor, Tensor]:
        """Return the overlaps (M, R, V, U) of objects with the anchors around them, and the anchors' places.

        What a box shares with an anchor is a product of what they share along x and along y, so only as many rows and
        columns of the map are looked at as any object reaches.
        """
        sizes = self.sizes[kinds]
        anchor_x, anchor_y = upright_extent(sizes[:, :1], sizes[:, 1:2], self.rotations[kinds])
        box_x, box_y = upright_extent(objects[:, 3:4], objects[:, 4:5], objects[:, 6:7])
        shared, cells = [], []
        for axis, center, box, anchor in ((1, objects[:, :1], box_x, anchor_x), (0, objects[:, 1:2], box_y, anchor_y)):
            apart = (self._centers(axis) - center).abs().unsqueeze(1)  # (M, 1, cells along the axis)
            reach = ((box + anchor) / 2).unsqueeze(-1)
            length = torch.minimum(reach - apart, torch.minimum(box, anchor).unsqueeze(-1)).clamp(min=0)
            width = int((length > 0).sum(-1).max()) if len(objects) else 0
            value, cell = length.topk(width, -1)
            shared.append(value)
            cells.append(cell)
        area = shared[0].unsqueeze(-2) * shared[1].unsqueeze(-1)
        union = (box_x * box_y + anchor_x * anchor_y)[..., None, None] - area
        count = self.rotations.shape[1]
        turn = torch.arange(count, device=objects.device).view(1, -1, 1, 1)
        cell = cells[1].unsqueeze(-1) * self.shape[1] + cells[0].unsqueeze(-2)
        return area / union, cell * self.per_cell + kinds.view(-1, 1, 1, 1) * count + turn
