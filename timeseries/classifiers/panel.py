"""Series of any length with their labels: how they are held, scaled and joined to batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from ..data.scaling import StandardScaler


@dataclass(frozen=True)
class Panel:
    """Series as read.

    Args:
        source: File name, for messages.
        channels: (D,) names of the values at each step.
        series: N arrays (L_i, D) float64, NaN where a value is missing; each has a step at least.
        names: (N,) what messages and predictions call each series.
        labels: (N,) class labels as text; None where the source has none.
        columns: The part of each column of a CSV file, plain values; empty for other sources.
    """

    source: str
    channels: tuple[str, ...]
    series: list[np.ndarray]
    names: list[str]
    labels: list[str] | None
    columns: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.series)

    def select(self, which: Sequence[int] | np.ndarray) -> Panel:
        """Return some of the series, by their numbers."""
        labels = None if self.labels is None else [self.labels[i] for i in which]
        return replace(
            self, series=[self.series[i] for i in which], names=[self.names[i] for i in which], labels=labels
        )


def fit_scaler(series: Sequence[np.ndarray], channels: Sequence[str], source: str) -> StandardScaler:
    """Fit each channel's mean and deviation on all steps of some series.

    Args:
        series: Arrays (L_i, D), NaN where missing.
        channels: (D,) names, for messages.
        source: File name, for messages.

    Returns:
        The scaler.

    Raises:
        DataError: A channel has no value at all.
    """
    return StandardScaler.fit(np.concatenate(series), None, channels, source)


class PanelDataset(Dataset[dict[str, Any]]):
    """Scaled series and their targets, indexed by number.

    A sample holds ``series`` (L, D) float32 with 0 at missing places, ``observed`` (L, D) bool where any value of the
    panel is missing, ``index`` and, where targets are known, ``target``.

    Args:
        series: N arrays (L_i, D), NaN where missing.
        scaler: Applied to each.
        targets: (N,) int64 classes or (N,) float32 values; None where unknown.
    """

    def __init__(self, series: Sequence[np.ndarray], scaler: StandardScaler, targets: Tensor | None = None) -> None:
        scaled = [torch.from_numpy(scaler.transform(one)) for one in series]
        masks = [~torch.isnan(one) for one in scaled]
        self.series = [torch.nan_to_num(one).float() for one in scaled]
        self.observed = None if all(bool(mask.all()) for mask in masks) else masks
        self.targets = targets

    def __len__(self) -> int:
        return len(self.series)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample: dict[str, Any] = {"index": index, "series": self.series[index]}
        if self.observed is not None:
            sample["observed"] = self.observed[index]
        if self.targets is not None:
            sample["target"] = self.targets[index]
        return sample


def collate(samples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """Join samples of a :class:`PanelDataset`, each series padded at its end to the longest.

    Args:
        samples: B samples.

    Returns:
        ``series`` (B, L, D) float32, ``index`` (B,) int64, ``lengths`` (B,) int64 where they differ, and ``observed``
        (B, L, D) bool and ``target`` (B,) where the samples have them.
    """
    batch = {
        "series": pad_sequence([sample["series"] for sample in samples], batch_first=True),
        "index": torch.tensor([sample["index"] for sample in samples]),
    }
    lengths = [len(sample["series"]) for sample in samples]
    if min(lengths) < max(lengths):
        batch["lengths"] = torch.tensor(lengths)
    if "observed" in samples[0]:
        batch["observed"] = pad_sequence([sample["observed"] for sample in samples], batch_first=True)
    if "target" in samples[0]:
        batch["target"] = torch.stack([sample["target"] for sample in samples])
    return batch
