"""Detectors: points to voxels, a middle network, a network that sees from above, and a head of anchors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..core.errors import ConfigError
from .anchors import AnchorClass
from .bev import BEVBackbone
from .head import AnchorHead, Detections, Maps, Suppression
from .lion import LION
from .second import SECOND
from .voxels import MeanVoxels, VoxelEncoder


class Detector(nn.Module):
    """A detector of boxes in point clouds.

    Args:
        reader: From points to voxels.
        middle: From voxels to voxels; None for none.
        bev: Sees the voxels from above.
        classes: The classes' anchors.
        suppression: Which boxes become detections.

    Attributes:
        classes: The classes' names, by label.

    Raises:
        ConfigError: Channels, or the sizes of the grid and the map, do not fit.
    """

    def __init__(
        self,
        reader: VoxelEncoder | MeanVoxels,
        middle: LION | SECOND | None,
        bev: BEVBackbone,
        classes: Sequence[AnchorClass],
        suppression: Suppression | None = None,
    ) -> None:
        super().__init__()
        grid = reader.grid
        height, *cells = grid.shape
        channels = reader.out_channels * height if middle is None else middle.out_channels
        if channels != bev.in_channels:
            raise ConfigError(f"detector: the map has {channels} channels, expected the {bev.in_channels} of bev")
        stride = getattr(middle, "stride", 1)
        for axis, count in zip("yx", cells, strict=True):
            if count % (stride * bev.multiple):
                raise ConfigError(
                    f"detector: the grid has {count} voxels along {axis}, expected a multiple of "
                    f"{stride * bev.multiple}: change the range or the voxels' size"
                )
        y, x = (count // (stride * bev.stride) for count in cells)
        self.reader, self.middle, self.bev = reader, middle, bev
        self.head = AnchorHead(bev.out_channels, classes, grid.point_range, (y, x), suppression)
        self.classes = tuple(one.name for one in classes)

    def forward(self, points: Sequence[Tensor]) -> Maps:
        """Describe the anchors of each frame.

        Args:
            points: For each frame (N, F): x, y, z in metres, and more; N may be 0. Points outside the range count for
                nothing.

        Returns:
            The head's maps.

        Raises:
            ValueError: There is no frame, or one is no table.
        """
        if not points:
            raise ValueError("points has no frame, expected at least one")
        for index, frame in enumerate(points):
            if frame.dim() != 2:
                raise ValueError(f"frame {index}: points have shape {tuple(frame.shape)}, expected (N, F)")
        counts = torch.tensor([len(frame) for frame in points], device=points[0].device)
        entry = torch.repeat_interleave(torch.arange(len(points), device=counts.device), counts)
        every = torch.cat(list(points))
        voxels = self.reader(torch.cat((entry.unsqueeze(1).to(every.dtype), every), 1), len(points))
        if self.middle is not None:
            voxels = self.middle(voxels)
        maps: Maps = self.head(self.bev(voxels.to_bev()))
        return maps

    def loss(self, points: Sequence[Tensor], boxes: Sequence[Tensor], labels: Sequence[Tensor]) -> dict[str, Tensor]:
        """Compare what is seen with what is there.

        Args:
            points: For each frame (N, F).
            boxes: For each frame (M, 7) lidar boxes; M may be 0.
            labels: For each frame (M,) int64, places in :attr:`classes`.

        Returns:
            As :meth:`~scanweave.pointcloud.head.AnchorHead.loss`: ``loss``, and its summands ``score``, ``box`` and
            ``direction``.

        Raises:
            ValueError: As :meth:`forward`, or boxes and labels do not fit.
        """
        return self.head.loss(self(points), boxes, labels)

    @torch.no_grad()
    def detect(self, points: Sequence[Tensor]) -> list[Detections]:
        """Return the objects in each frame's points (N, F); call it in eval mode."""
        return self.head.decode(self(points))
