"""Quantile forecasts: levels, order, and conformal calibration."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import NormalDist

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.errors import ConfigError


def check_quantiles(quantiles: Sequence[float]) -> tuple[float, ...]:
    """Return the levels as a tuple.

    Raises:
        ConfigError: If a level is outside (0, 1) or the levels do not rise.
    """
    levels = tuple(float(level) for level in quantiles)
    if any(not 0 < level < 1 for level in levels):
        raise ConfigError(f"quantiles: found {list(levels)}, expected levels strictly between 0 and 1")
    if any(low >= high for low, high in pairwise(levels)):
        raise ConfigError(f"quantiles: found {list(levels)}, expected each level once, in rising order")
    return levels


def point_index(quantiles: Sequence[float]) -> int:
    """Return the position of the level nearest the median: the point forecast."""
    return min(range(len(quantiles)), key=lambda i: abs(quantiles[i] - 0.5))


def uncross(raw: Tensor, quantiles: Sequence[float]) -> Tensor:
    """Turn free outputs into quantiles that cannot cross.

    ``q_m = raw_m`` at the level m nearest the median; outwards, ``q_{m+k} = q_{m+k-1} + softplus(raw_{m+k})`` and
    ``q_{m-k} = q_{m-k+1} - softplus(raw_{m-k})``.

    Args:
        raw: (..., Q) free values.
        quantiles: Q rising levels.

    Returns:
        (..., Q) values that rise along the last axis.
    """
    middle = point_index(quantiles)
    steps = F.softplus(raw)
    centre = raw[..., middle : middle + 1]
    above = centre + steps[..., middle + 1 :].cumsum(-1)
    below = centre - steps[..., :middle].flip(-1).cumsum(-1).flip(-1)
    return torch.cat((below, centre, above), dim=-1)


def at_levels(values: np.ndarray, quantiles: Sequence[float], alpha: Sequence[float]) -> np.ndarray:
    """Read quantiles of any level off trained ones, linear in the normal distribution's quantiles.

    Beyond the outermost levels the line through the two last ones goes on; one level stands for all.

    Args:
        values: (..., Q) rising quantiles.
        quantiles: Q rising levels.
        alpha: Levels asked for, each in (0, 1), or 0 and 1, which are infinite.

    Returns:
        (..., A).

    Raises:
        ConfigError: A level is outside [0, 1].
    """
    if any(not 0 <= level <= 1 for level in alpha):
        raise ConfigError(f"alpha: found {list(alpha)}, expected levels from 0 to 1")
    if len(quantiles) == 1:
        return np.repeat(values, len(alpha), axis=-1)
    normal = NormalDist()
    known = np.array([normal.inv_cdf(level) for level in quantiles])
    columns = []
    for level in alpha:
        if level in (0, 1):
            columns.append(np.full(values.shape[:-1], -np.inf if level == 0 else np.inf))
            continue
        place = normal.inv_cdf(level)
        i = int(np.clip(np.searchsorted(known, place), 1, len(known) - 1))
        share = (place - known[i - 1]) / (known[i] - known[i - 1])
        columns.append(values[..., i - 1] + share * (values[..., i] - values[..., i - 1]))
    return np.stack(columns, axis=-1)


class ConformalOffsets(nn.Module):
    """Shift each quantile so that it holds its level on held-out windows.

    With residuals ``s_i = y_i - q_tau(x_i)`` of n held-out windows, the shift is the k-th smallest ``s_i`` with
    ``k = ceil((n + 1) tau)`` for ``tau > 1/2`` and ``k = floor((n + 1) tau)`` below, so that each tail errs on the
    wide side; every horizon step and channel has shifts of its own. Where n is too small for a level, the extreme
    residual serves. The guarantee of the source supposes exchangeable windows; those of a series overlap and drift,
    so measure the coverage on later data.

    Args:
        horizon: Steps H.
        channels: Channels D.
        quantiles: Q rising levels.

    Source: Romano, Patterson and Candes 2019, Conformalized quantile regression, theorem 2 (one shift per tail).
    """

    def __init__(self, horizon: int, channels: int, quantiles: Sequence[float]) -> None:
        super().__init__()
        self.quantiles = check_quantiles(quantiles)
        self.shift: Tensor
        self.register_buffer("shift", torch.zeros(horizon, channels, len(self.quantiles)))

    def forward(self, forecast: Tensor) -> Tensor:
        """Return the shifted (B, H, D, Q) forecast, its quantiles in order."""
        return torch.cummax(forecast + self.shift, dim=-1).values

    @torch.no_grad()
    def calibrate(self, residuals: Tensor, mask: Tensor | None = None) -> None:
        """Set the shifts from held-out windows.

        The median keeps its place: shifting it would trade the point forecast for nothing.

        Args:
            residuals: (N, H, D, Q) truth minus uncalibrated quantile.
            mask: (N, H, D) bool, True where the truth is known.
        """
        ordered = residuals.float()
        if mask is not None:
            ordered = ordered.masked_fill(~mask.unsqueeze(-1), math.inf)
            counts = mask.sum(0)
        else:
            counts = torch.full(ordered.shape[1:3], len(ordered), device=ordered.device)
        ordered = ordered.sort(dim=0).values
        for i, level in enumerate(self.quantiles):
            if level == 0.5:
                continue
            place = (counts + 1) * level
            rank = torch.ceil(place - 1e-9) if level > 0.5 else torch.floor(place + 1e-9)
            index = torch.minimum(rank.long(), counts).clamp(min=1) - 1
            chosen = ordered[..., i].gather(0, index.unsqueeze(0)).squeeze(0)
            self.shift[..., i] = torch.where(counts > 0, chosen, 0)
