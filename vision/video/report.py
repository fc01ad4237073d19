"""What a prediction leaves behind: scores over time as a table, a verdict for each video, and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from ...core.plots import BLUE, GREEN, INK, MUTED, ORANGE, new_figure, save_figure
from ...core.storage import atomic_file
from .sampling import Sampling
from .videos import Video

_DRAWN, _THUMBNAILS = 20, 8
_COLOURS = (BLUE, ORANGE, GREEN, INK)


class Timeline(NamedTuple):
    """A video's scores over time.

    Attributes:
        number: The video's number in its set.
        name: Its name.
        fps: Frames per second.
        frames: (n,) the last frame that each score rests on, from 0.
        scores: (n, K) probabilities at these frames.
        verdict: (K,) the whole video's probabilities.
    """

    number: int
    name: str
    fps: float
    frames: np.ndarray
    scores: np.ndarray
    verdict: np.ndarray


def write_scores(timelines: Sequence[Timeline], classes: Sequence[str], path: Path) -> Path:
    """Write a row for each score: video, frame, seconds, the most likely class, and each class's probability.

    Args:
        timelines: The videos'.
        classes: K names.
        path: The CSV file to write.

    Returns:
        The file.
    """
    tables = [
        pd.DataFrame(
            {
                "video": line.name,
                "frame": line.frames,
                "seconds": line.frames / line.fps,
                "label": [classes[k] for k in line.scores.argmax(1)],
                **{f"p({name})": line.scores[:, k] for k, name in enumerate(classes)},
            }
        )
        for line in timelines
    ]
    with atomic_file(path, "w") as file:
        pd.concat(tables).to_csv(file, index=False, float_format="%.6g")
    return path


def write_verdicts(timelines: Sequence[Timeline], classes: Sequence[str], path: Path) -> Path:
    """Write each video's most likely class, with its probability.

    Args:
        timelines: The videos'.
        classes: K names.
        path: The CSV file to write.

    Returns:
        The file.
    """
    best = [int(line.verdict.argmax()) for line in timelines]
    table = pd.DataFrame(
        {
            "video": [line.name for line in timelines],
            "label": [classes[k] for k in best],
            "probability": [line.verdict[k] for line, k in zip(timelines, best, strict=True)],
        }
    )
    with atomic_file(path, "w") as file:
        table.to_csv(file, index=False, float_format="%.6g")
    return path


def draw_timelines(
    timelines: Sequence[Timeline], videos: Sequence[Video], classes: Sequence[str], folder: Path
) -> list[Path]:
    """Draw the first videos' scores over time under some of their frames.

    Args:
        timelines: The videos'.
        videos: The set that they are numbered in.
        classes: K names.
        folder: Where ``timeline_000.png`` and so on are written.

    Returns:
        The files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    return [
        draw_timeline(line, videos[line.number], classes, folder / f"timeline_{i:03d}.png")
        for i, line in enumerate(timelines[:_DRAWN])
    ]


def draw_timeline(line: Timeline, video: Video, classes: Sequence[str], path: Path) -> Path:
    """Draw one video: frames spread over its length, and below them the likeliest classes' probabilities.

    Args:
        line: The scores.
        video: The video, of which a few frames are read again.
        classes: K names.
        path: The PNG to write.

    Returns:
        The file.
    """
    figure, (above, ax) = new_figure(9.0, 4.6, rows=2)
    grid = above.get_gridspec()
    if grid is not None:
        grid.set_height_ratios([1, 2.4])
    length = len(video)
    frames = video.read(Sampling("segments", min(_THUMBNAILS, length)).pick(length))
    margin = np.full((len(frames), frames.shape[1], max(2, frames.shape[2] // 24), 3), 255, np.uint8)
    strip = np.concatenate([frames, margin], 2)
    above.imshow(np.concatenate(list(strip), 1))
    above.set_axis_off()
    seconds = line.frames / line.fps
    best = np.argsort(-line.scores.max(0), kind="stable")[: len(_COLOURS)]
    shown = sorted(best, key=lambda k: -line.verdict[k])
    marker = "o" if len(seconds) < 60 else None
    for k, colour in zip(shown, _COLOURS, strict=False):
        ax.plot(seconds, line.scores[:, k], color=colour, linewidth=1.6, marker=marker, markersize=3, label=classes[k])
    others = np.delete(line.scores, best, 1)
    if others.shape[1]:
        ax.plot(seconds, others.sum(1), color=MUTED, linewidth=1.0, linestyle=(0, (4, 3)), label="all others")
    ax.set_ylim(-0.03, 1.03)
    ax.set_xlabel("time [s]")
    ax.set_ylabel("probability")
    ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=9, labelcolor=INK)
    k = int(line.verdict.argmax())
    title = f"{line.name}: {classes[k]} ({line.verdict[k]:.0%})"
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold", color=INK)
    return save_figure(figure, path)
