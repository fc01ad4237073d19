"""Figures with one look; drawn on Figure objects, so that no global matplotlib state is read or changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.dates as mdates
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

from .errors import DataError
from .storage import atomic_file

INK, MUTED, GRID = "#1f2430", "#6b7280", "#e5e7eb"
BLUE, ORANGE, GREEN = "#2563eb", "#ea580c", "#059669"


def new_figure(width: float = 8.0, height: float = 4.5, rows: int = 1, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """Return a figure and its axes in the shared style.

    Args:
        width: Inches.
        height: Inches.
        rows: Rows of axes.
        columns: Columns of axes.

    Returns:
        The figure, and its axes row by row.
    """
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.spines[["left", "bottom"]].set_color(MUTED)
        ax.tick_params(colors=MUTED, labelcolor=INK, labelsize=9)
        ax.grid(color=GRID, linewidth=0.8)
        ax.set_axisbelow(True)
        ax.xaxis.label.set_color(INK)
        ax.yaxis.label.set_color(INK)
    return figure, axes


def set_title(ax: Axes, title: str) -> None:
    """Put a left-aligned title over axes."""
    ax.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK)


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write a figure as PNG, whole or not at all.

    Args:
        figure: The figure.
        path: The file.

    Returns:
        The file.
    """
    with atomic_file(path) as file:
        figure.savefig(file, format="png")
    return Path(path)


def _legend_above(ax: Axes) -> None:
    """Put the legend over the axes' right end, where no data can be."""
    entries = len(ax.get_legend_handles_labels()[0])
    ax.legend(
        loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=entries, frameon=False, fontsize=9, labelcolor=INK,
        borderaxespad=0.1, handlelength=1.6, columnspacing=1.4,
    )  # fmt: skip


def forecast_figure(
    past_time: ArrayLike,
    past: ArrayLike,
    future_time: ArrayLike,
    forecast: ArrayLike,
    path: str | Path,
    *,
    truth: ArrayLike | None = None,
    interval: tuple[ArrayLike, ArrayLike] | None = None,
    interval_label: str = "80 % interval",
    name: str = "value",
    unit: str = "",
    title: str = "Forecast",
) -> Path:
    """Draw one series' forecast after its past, with the truth and an interval where they are known.

    Args:
        past_time: (L,) numbers or datetimes.
        past: (L,) observed values in the data's unit.
        future_time: (H,) numbers or datetimes.
        forecast: (H,) predicted values.
        path: The PNG to write.
        truth: (H,) what came to be.
        interval: Two (H,) arrays: its lower and upper end.
        interval_label: The interval's name.
        name: The series' name.
        unit: Its unit.
        title: Title.

    Returns:
        The file.

    Raises:
        DataError: Times and values differ in length.
    """
    x_past, y_past = _pair(past_time, past, "past")
    x_future, y_future = _pair(future_time, forecast, "forecast")
    figure, (ax,) = new_figure(9.0, 4.0)
    ax.axvline(x_future[0], color=MUTED, linewidth=1.0, linestyle=(0, (4, 3)))
    ax.plot(x_past, y_past, color=MUTED, linewidth=1.3, label="past")
    if interval is not None:
        low, high = (_pair(future_time, end, "interval")[1] for end in interval)
        ax.fill_between(x_future, low, high, color=BLUE, alpha=0.18, linewidth=0, label=interval_label)
    if truth is not None:
        ax.plot(x_future, _pair(future_time, truth, "truth")[1], color=INK, linewidth=1.3, label="truth")
    ax.plot(x_future, y_future, color=BLUE, linewidth=1.8, label="forecast")
    if np.issubdtype(x_future.dtype, np.datetime64):
        locator = mdates.AutoDateLocator(minticks=4, maxticks=9)
        ax.xaxis.set_major_locator(locator)
        ax.xaxis.set_major_formatter(mdates.ConciseDateFormatter(locator))
        ax.set_xlabel("time")
    else:
        ax.set_xlabel("step")
    ax.set_ylabel(f"{name} [{unit}]" if unit else name)
    ax.margins(x=0.01)
    set_title(ax, title)
    _legend_above(ax)
    return save_figure(figure, path)


def _pair(x: ArrayLike, y: ArrayLike, what: str) -> tuple[NDArray[Any], NDArray[Any]]:
    times, values = np.asarray(x), np.asarray(y, dtype=float)
    if times.shape != values.shape or times.ndim != 1 or len(times) == 0:
        raise DataError(f"{what}: times have shape {times.shape} and values {values.shape}; both must be (n,), n > 0")
    return times, values


def confusion_figure(
    matrix: ArrayLike, classes: Sequence[str], path: str | Path, *, title: str = "Confusion matrix"
) -> Path:
    """Draw a confusion matrix: rows are true classes, shaded by the share of the row, cells with counts.

    Args:
        matrix: (K, K) counts; entry (i, j) counts samples of class i that were called j.
        classes: K names.
        path: The PNG to write.
        title: Title; the accuracy is added.

    Returns:
        The file.

    Raises:
        DataError: The matrix is not K by K.
    """
    counts = np.asarray(matrix)
    k = len(classes)
    if counts.shape != (k, k):
        raise DataError(f"confusion matrix has shape {counts.shape}; {k} class names need ({k}, {k})")
    rows = counts.sum(axis=1, keepdims=True)
    share = np.divide(counts, rows, out=np.zeros(counts.shape), where=rows > 0)
    side = min(14.0, 3.2 + 0.55 * k)
    longest = max(map(len, classes), default=0)
    # The squares keep their shape, so the layout has no room to give: names get an inch for twelve letters.
    figure, (ax,) = new_figure(side + 0.8 + longest / 12, side)
    image = ax.imshow(share, cmap="Blues", vmin=0.0, vmax=1.0)
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    long_names = longest * k > 40
    ax.set_xticks(range(k), classes, rotation=45 if long_names else 0, ha="right" if long_names else "center")
    ax.set_yticks(range(k), classes)
    ax.tick_params(length=0)
    ax.set_xlabel("predicted class")
    ax.set_ylabel("true class")
    if k <= 25:
        for i, j in np.argwhere(counts > 0):
            ax.text(
                j, i, f"{counts[i, j]:g}", ha="center", va="center", fontsize=9 if k <= 12 else 6,
                color="white" if share[i, j] > 0.55 else INK,
            )  # fmt: skip
    bar = figure.colorbar(image, ax=ax, fraction=0.046, pad=0.03)
    bar.set_label("share of the true class", color=INK, fontsize=9)
    bar.outline.set_visible(False)  # type: ignore[operator]
    bar.ax.tick_params(colors=MUTED, labelcolor=INK, labelsize=8)
    total = counts.sum()
    accuracy = f", accuracy {np.trace(counts) / total:.1%} of {total:g}" if total else ""
    set_title(ax, title + accuracy)
    return save_figure(figure, path)


def training_curve(
    curves: Mapping[str, Mapping[int, float]], path: str | Path, *, ylabel: str = "loss", title: str = "Training"
) -> Path:
    """Draw metrics over epochs; the best epoch of a validation curve is marked where losses fall.

    Args:
        curves: Values by zero-based epoch, by name (``train/loss``, ``val/loss``).
        path: The PNG to write.
        ylabel: What is drawn, with its unit.
        title: Title.

    Returns:
        The file.

    Raises:
        DataError: There is nothing to draw.
    """
    if not any(curves.values()):
        raise DataError("there are no values to draw a training curve of")
    figure, (ax,) = new_figure(8.0, 4.0)
    colours = {"train": MUTED, "val": BLUE, "test": ORANGE}
    for i, (name, values) in enumerate(curves.items()):
        epochs = np.array(sorted(values))
        height = np.array([values[e] for e in epochs])
        colour = colours.get(name.split("/")[0], (GREEN, ORANGE, BLUE)[i % 3])
        ax.plot(epochs + 1, height, color=colour, linewidth=1.8, marker="o", markersize=3, label=name)
        if name == "val/loss" and np.isfinite(height).any():
            best = int(np.nanargmin(height))
            ax.plot(
                epochs[best] + 1, height[best], marker="o", markersize=8, markerfacecolor="none", color=ORANGE,
                linestyle="none", label=f"best: {height[best]:.4g} (epoch {epochs[best] + 1})",
            )  # fmt: skip
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("epoch")
    ax.set_ylabel(ylabel)
    set_title(ax, title)
    _legend_above(ax)
    return save_figure(figure, path)
