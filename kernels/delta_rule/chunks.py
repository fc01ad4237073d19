"""How often each backend of delta_rule keeps the state for its backward pass."""

from __future__ import annotations

#: Steps between two saved states, by backend.
STEPS = {"chunked": 64, "cpu": 64, "triton": 64}
