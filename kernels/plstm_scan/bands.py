"""How a grid's rows are cut for the backward pass."""

from __future__ import annotations

#: Rows between two whose incoming states are saved.
BAND = 16


def bands(rows: int) -> int:
    """Return how many rows have the states that enter them saved."""
    return -(-rows // BAND)
