"""What a test and a prediction leave behind: tables by class and by image, and the worst mistakes as a picture."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from ...core.plots import INK, MUTED, new_figure, save_figure
from ...core.storage import atomic_file
from .readers import ImageSet

_COLUMNS = 6


class Mistakes:
    """The images that were called something else with the greatest certainty.

    Args:
        most: How many are kept.
    """

    def __init__(self, most: int = 24) -> None:
        self.most = most
        # Rows of certainty, image, true class, called class; an image of -1 stands for none.
        self._rows = torch.full((most, 4), -1.0, dtype=torch.float64)

    def __len__(self) -> int:
        return int((self._rows[:, 1] >= 0).sum())

    def update(self, index: Tensor, probabilities: Tensor, target: Tensor) -> None:
        """Add a batch's mistakes.

        Args:
            index: (B,) numbers of the images.
            probabilities: (B, K).
            target: (B,) true classes.
        """
        certainty, called = probabilities.max(-1)
        wrong = called != target
        rows = torch.stack([column[wrong].double().cpu() for column in (certainty, index, target, called)], dim=1)
        self._keep(torch.cat((self._rows, rows)))

    def gather(self, all_gather: Callable[[Tensor], Any]) -> None:
        """Join the mistakes of all processes."""
        self._keep(all_gather(self._rows).reshape(-1, 4).cpu())

    def _keep(self, rows: Tensor) -> None:
        self._rows = rows[rows[:, 0].argsort(descending=True, stable=True)][: self.most]

    def rows(self) -> list[tuple[int, int, int, float]]:
        """Return (image, true class, called class, certainty), the most certain first."""
        found = self._rows[: len(self)].tolist()
        return [(int(index), int(true), int(called), certainty) for certainty, index, true, called in found]


def class_report(counts: np.ndarray, classes: Sequence[str], path: Path, counted: str = "images") -> Path:
    """Write precision, recall, F1 and the number of images of each class.

    Args:
        counts: (K, K); entry (i, j) counts images of class i that were called j.
        classes: K names.
        path: The CSV file to write.
        counted: What was classified, the heading of the last column.

    Returns:
        The file.
    """
    right = np.diag(counts).astype(float)
    true, called = counts.sum(1), counts.sum(0)

    def share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
        return np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0)

    table = pd.DataFrame(
        {
            "class": list(classes),
            "precision": share(right, called),
            "recall": share(right, true),
            "f1": share(2 * right, true + called),
            counted: true,
        }
    )
    with atomic_file(path, "w") as file:
        table.to_csv(file, index=False, float_format="%.6g")
    return path


def list_mistakes(mistakes: Mistakes, images: ImageSet, classes: Sequence[str], path: Path) -> Path:
    """Write the worst mistakes as a table: image, its label, what it was called, and the certainty.

    Args:
        mistakes: The mistakes.
        images: The test images.
        classes: Names.
        path: The CSV file to write.

    Returns:
        The file.
    """
    rows = [(images.names[i], classes[true], classes[called], p) for i, true, called, p in mistakes.rows()]
    with atomic_file(path, "w") as file:
        pd.DataFrame(rows, columns=["image", "label", "called", "probability"]).to_csv(file, index=False)
    return path


def draw_mistakes(mistakes: Mistakes, images: ImageSet, classes: Sequence[str], max_pixels: int, path: Path) -> Path:
    """Draw the worst mistakes, each with what it was called, what it is, and the certainty.

    Args:
        mistakes: At least one.
        images: The test images.
        classes: Names.
        max_pixels: Most pixels of an image.
        path: The PNG to write.

    Returns:
        The file.
    """
    rows = mistakes.rows()
    columns = min(_COLUMNS, len(rows))
    lines = math.ceil(len(rows) / columns)
    figure, axes = new_figure(1.7 * columns + 0.6, 2.3 * lines + 0.5, lines, columns)
    for ax in axes:
        ax.set_axis_off()
    for ax, (index, true, called, certainty) in zip(axes, rows, strict=False):
        picture = images.picture(index, max_pixels)
        picture.thumbnail((256, 256), Image.Resampling.LANCZOS)
        ax.imshow(np.asarray(picture), cmap="gray", vmin=0, vmax=255)
        ax.set_title(
            f"called {_short(classes[called])} ({certainty:.0%})", fontsize=8, color=INK, fontweight="bold", pad=13
        )
        ax.text(
            0.5, 1.02, f"is {_short(classes[true])}", transform=ax.transAxes, ha="center", va="bottom", fontsize=8,
            color=MUTED,
        )  # fmt: skip
    figure.suptitle("Most certain mistakes", x=0.01, ha="left", fontsize=11, fontweight="bold", color=INK)
    return save_figure(figure, path)


def _short(name: str, most: int = 12) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


def write_predictions(
    names: Sequence[str], probabilities: np.ndarray, classes: Sequence[str], top_k: int, path: Path
) -> Path:
    """Write each image's most likely labels with their probabilities.

    Args:
        names: (N,) images.
        probabilities: (N, K).
        classes: K labels.
        top_k: Labels listed for each image; at most K are.
        path: The CSV file to write.

    Returns:
        The file.
    """
    best = np.argsort(-probabilities, axis=1, kind="stable")[:, : min(top_k, len(classes))]
    table: dict[str, Any] = {"image": list(names)}
    for rank in range(best.shape[1]):
        ending = "" if rank == 0 else f"_{rank + 1}"
        table[f"label{ending}"] = [classes[k] for k in best[:, rank]]
        table[f"probability{ending}"] = probabilities[np.arange(len(best)), best[:, rank]]
    with atomic_file(path, "w") as file:
        pd.DataFrame(table).to_csv(file, index=False)
    return path
