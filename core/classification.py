"""What every task of choosing one class shares: dividing by class, ordering and weighing classes, and metrics."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassAUROC,
    MulticlassCalibrationError,
    MulticlassF1Score,
)


def held_out(classes: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Divide samples so that each class has about the same share held out.

    Args:
        classes: (N,) int64, each sample's class.
        share: Share to hold out, between 0 and 1; of a class of at least two samples, one at least is held out and
            one at least stays.
        seed: Seed of the choice.

    Returns:
        The numbers of the samples that stay and of those held out, each rising.
    """
    generator = np.random.default_rng(seed)
    held = np.zeros(len(classes), dtype=bool)
    for one in np.unique(classes):
        members = generator.permutation(np.flatnonzero(classes == one))
        count = int(np.clip(round(share * len(members)), 1, len(members) - 1)) if len(members) > 1 else 0
        held[members[:count]] = True
    return np.flatnonzero(~held), np.flatnonzero(held)


def order_classes(labels: Iterable[str]) -> tuple[str, ...]:
    """Return the different labels in order: numbers by size, other names by the alphabet."""
    found = set(labels)
    try:
        return tuple(sorted(found, key=float))
    except ValueError:
        return tuple(sorted(found))


def digest(names: Sequence[str], labels: Sequence[str]) -> str:
    """Return a SHA-256 of which samples there are, and of which class, whatever their order."""
    pairs = sorted(zip(names, labels, strict=True))
    return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()


def balanced_weights(counts: Sequence[int]) -> Tensor:
    """Return each class's weight N / (K n_k), the inverse of its share of N samples over K classes.

    Args:
        counts: n_k, training samples of each class; none is 0.

    Returns:
        (K,) float32.
    """
    found = torch.tensor(counts, dtype=torch.float32)
    return found.sum() / (len(found) * found)


def classification_metrics(classes: int) -> dict[str, Metric]:
    """Return accuracy, macro F1, macro area under the ROC curve, and the calibration error of the likeliest class.

    Args:
        classes: K; the metrics take probabilities (B, K) and targets (B,).

    Returns:
        New metrics by name.
    """
    return {
        "accuracy": MulticlassAccuracy(classes, average="micro"),
        "f1": MulticlassF1Score(classes, average="macro"),
        "auroc": MulticlassAUROC(classes, average="macro"),
        "calibration_error": MulticlassCalibrationError(classes),
    }
