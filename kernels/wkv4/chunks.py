"""How time is cut for wkv4."""

from __future__ import annotations

#: Steps between two saved states, for every backend: the backward pass may run in another one than the forward pass.
STEPS = 32
