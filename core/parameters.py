"""How recurrences' parameters are made and read: marks, initial draws, precision."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def undecayed(value: Tensor) -> nn.Parameter:
    """Make a parameter that the optimiser leaves out of weight decay.

    Args:
        value: Initial value; decays, step sizes and skip gains, whose zero is no natural centre.

    Returns:
        The parameter, with ``_no_weight_decay`` set.
    """
    return mark_undecayed(nn.Parameter(value))


def mark_undecayed(parameter: nn.Parameter) -> nn.Parameter:
    """Leave an existing parameter out of weight decay, and return it."""
    parameter._no_weight_decay = True  # type: ignore[attr-defined]
    return parameter


def log_uniform(shape: tuple[int, ...], low: float, high: float) -> Tensor:
    """Draw log(s) for steps s that are log-uniform in [low, high].

    Args:
        shape: Shape of the draw.
        low: Smallest step, > 0.
        high: Largest step.

    Returns:
        The steps' natural logarithms, float32.
    """
    return torch.empty(shape).uniform_(math.log(low), math.log(high))


def inverse_softplus(y: Tensor) -> Tensor:
    """Return x with ``softplus(x) = y``, for y > 0, without overflow for large or small y."""
    return y + torch.log(-torch.expm1(-y))


def initial_dt_bias(shape: tuple[int, ...]) -> Tensor:
    """Draw the bias of a softplus whose steps are log-uniform in [1e-3, 1e-1], as Mamba's are.

    Args:
        shape: Shape of the draw.

    Returns:
        The bias, float32.

    Source:
        Gu and Dao, Mamba (2023), section 3.6.
    """
    return inverse_softplus(log_uniform(shape, 1e-3, 1e-1).exp().clamp(min=1e-4))


def widen(x: Tensor) -> Tensor:
    """Return x in at least single precision: float32 for half types, else unchanged."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
