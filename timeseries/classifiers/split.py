"""Divide labelled series: the same share of every class on both sides."""

from __future__ import annotations

import numpy as np


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
