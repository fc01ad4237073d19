"""How often each backend of dplr_scan keeps the state for its backward pass."""

from __future__ import annotations

from ..matrix_state.chunks import SPAN

#: Steps between two saved states, by backend; the Triton kernels start again from the first one.
STEPS = {"chunked": SPAN, "cpu": 64, "triton": 2**30}
