"""A frame from above and on its image: points, labels and detections, drawn without a display."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ...core.errors import DataError
from ...core.plots import BLUE, MUTED, ORANGE, new_figure, save_figure, set_title
from ..boxes import Calibration, camera_corners, corners, lidar_to_camera

# Colour, line width and name; a label is wide enough to be seen under the detection that meets it.
_LABEL, _DETECTION = (BLUE, 2.8, "label"), (ORANGE, 1.2, "detection")
_RANGE = (0.0, -40.0, -3.0, 70.4, 40.0, 1.0)
_EDGES = ((0, 1), (1, 2), (2, 3), (3, 0), (4, 5), (5, 6), (6, 7), (7, 4), (0, 4), (1, 5), (2, 6), (3, 7))
# Edges that come nearer to the camera than this are not drawn: their ends would lie far outside.
_NEAREST = 0.5


def draw_frame(
    path: str | Path,
    points: Tensor,
    labels: Tensor,
    detections: Tensor | None = None,
    title: str = "",
    point_range: Sequence[float] = _RANGE,
) -> Path:
    """Draw a scan from above, forward to the right, with its boxes.

    Args:
        path: The PNG to write.
        points: (N, 3 or more) lidar points, metres.
        labels: (M, 7) lidar boxes, drawn in blue; a stroke from the centre shows where each heads.
        detections: (K, 7) lidar boxes, drawn in orange; None draws none.
        title: What stands above.
        point_range: Least x, y, z and greatest x, y, z of what is shown, metres.

    Returns:
        The path.

    Raises:
        ConfigError: The file cannot be written.
    """
    forward, side = (point_range[0], point_range[3]), (point_range[1], point_range[4])
    shape = (side[1] - side[0]) / (forward[1] - forward[0])
    figure, (ax,) = new_figure(9.0, 0.6 + min(12.0, 7.92 * shape))
    ax.grid(False)
    cloud = points.detach().cpu().numpy()
    # Height tells objects from the road: dark is high.
    ax.scatter(
        cloud[:, 0], cloud[:, 1], c=np.clip(cloud[:, 2], -2, 1), s=0.8, cmap="Greys", vmin=-3.4, vmax=1, linewidths=0
    )
    for boxes, colour, width, name in ((labels, *_LABEL), (detections, *_DETECTION)):
        for index, box in enumerate([] if boxes is None else boxes.detach().cpu()):
            ring = corners(box)[[0, 1, 2, 3, 0], :2].numpy()
            ax.plot(ring[:, 0], ring[:, 1], color=colour, linewidth=width, label=None if index else name)
            front = (ring[0] + ring[3]) / 2
            ax.plot([float(box[0]), front[0]], [float(box[1]), front[1]], color=colour, linewidth=width)
    ax.set(xlim=forward, ylim=side, aspect="equal", xlabel="x, forward (m)", ylabel="y, left (m)")
    set_title(ax, title)
    _legend(ax)
    return save_figure(figure, path)


def draw_on_image(
    path: str | Path,
    image: str | Path,
    calibration: Calibration,
    labels: Tensor,
    detections: Tensor | None = None,
    title: str = "",
) -> Path:
    """Draw boxes on the camera's image.

    Args:
        path: The PNG to write.
        image: The image's file.
        calibration: The frame's calibration.
        labels: (M, 7) lidar boxes, drawn in blue.
        detections: (K, 7) lidar boxes, drawn in orange; None draws none.
        title: What stands above.

    Returns:
        The path.

    Raises:
        DataError: The image cannot be read.
        ConfigError: The file cannot be written.
    """
    try:
        with Image.open(image) as opened:
            pixels = np.asarray(opened.convert("RGB"))
    except (OSError, UnidentifiedImageError) as error:
        raise DataError(f"{image}: cannot be read as an image ({error})") from error
    height, width = pixels.shape[:2]
    figure, (ax,) = new_figure(12.0, 12.0 * height / width + 0.5)
    ax.imshow(pixels)
    for boxes, colour, line, name in ((labels, *_LABEL), (detections, *_DETECTION)):
        if boxes is None or not len(boxes):
            continue
        ends = camera_corners(lidar_to_camera(boxes.detach().cpu().double(), calibration))
        before = (ends[..., 2] > _NEAREST).numpy()
        at = calibration.rect_to_image(ends)[0].numpy()
        lines = [at[box, list(edge)] for box in range(len(at)) for edge in _EDGES if before[box, list(edge)].all()]
        ax.add_collection(LineCollection(lines, colors=colour, linewidths=line, label=name))
    ax.set(xlim=(0, width), ylim=(height, 0))
    ax.axis("off")
    set_title(ax, title)
    _legend(ax)
    return save_figure(figure, path)


def _legend(ax: Axes) -> None:
    """Say above the picture whose boxes are which, where there are any."""
    if ax.get_legend_handles_labels()[1]:
        ax.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, frameon=False, labelcolor=MUTED)
