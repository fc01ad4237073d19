"""A frame from above: points, labels and detections in one picture, drawn without a display."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import Tensor

from ...core.plots import BLUE, MUTED, ORANGE, new_figure, save_figure, set_title
from ..boxes import corners

_FORWARD, _SIDE = (0.0, 70.4), (-40.0, 40.0)


def draw_frame(
    path: str | Path, points: Tensor, labels: Tensor, detections: Tensor | None = None, title: str = ""
) -> Path:
    """Draw a scan from above, forward to the right, with its boxes.

    Args:
        path: The PNG to write.
        points: (N, 3 or more) lidar points, metres.
        labels: (M, 7) lidar boxes, drawn in blue; a stroke from the centre shows where each heads.
        detections: (K, 7) lidar boxes, drawn in orange; None draws none.
        title: What stands above.

    Returns:
        The path.

    Raises:
        ConfigError: The file cannot be written.
    """
    figure, (ax,) = new_figure(9.0, 9.6)
    ax.grid(False)
    cloud = points.detach().cpu().numpy()
    # Height tells objects from the road: dark is high.
    ax.scatter(
        cloud[:, 0], cloud[:, 1], c=np.clip(cloud[:, 2], -2, 1), s=0.4, cmap="Greys", vmin=-2.6, vmax=1, linewidths=0
    )
    for boxes, colour, name in ((labels, BLUE, "label"), (detections, ORANGE, "detection")):
        for index, box in enumerate([] if boxes is None else boxes.detach().cpu()):
            ring = corners(box)[[0, 1, 2, 3, 0], :2].numpy()
            ax.plot(ring[:, 0], ring[:, 1], color=colour, linewidth=1.4, label=None if index else name)
            front = (ring[0] + ring[3]) / 2
            ax.plot([float(box[0]), front[0]], [float(box[1]), front[1]], color=colour, linewidth=1.4)
    ax.set(xlim=_FORWARD, ylim=_SIDE, aspect="equal", xlabel="x, forward (m)", ylabel="y, left (m)")
    set_title(ax, title)
    if ax.get_legend_handles_labels()[1]:
        ax.legend(loc="upper right", frameon=False, labelcolor=MUTED)
    return save_figure(figure, path)
