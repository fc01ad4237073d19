"""delta_rule's C++ form."""

from __future__ import annotations

from torch import Tensor

from ..cpu.matrix_state import Arguments, MatrixState
from ..matrix_state.chunks import STEPS

_op = MatrixState("delta_rule", STEPS["cpu"])


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None,
    initial_state: Tensor | None,
    reset: Tensor | None,
    scale: float,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute o, the final state and the states before each chunk; as :func:`.chunked.forward`."""
    return _op.forward(Arguments(q, k, v, log_decay, initial_state, reset, scale, beta=beta), save)


def backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None,
    initial_state: Tensor | None,
    reset: Tensor | None,
    scale: float,
    before: Tensor,
    do: Tensor | None,
    dfinal: Tensor | None,
) -> tuple[Tensor, ...]:
    """Compute the gradients of all tensors, recomputing the states chunk by chunk; as :func:`.chunked.backward`."""
    arguments = Arguments(q, k, v, log_decay, initial_state, reset, scale, beta=beta)
    return _op.backward(arguments, before, do, dfinal, ("q", "k", "v", "beta", "log_decay"))
