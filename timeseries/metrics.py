"""Metrics of quantile forecasts; point forecasts are measured by torchmetrics' own."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric


class Coverage(Metric):
    """Share of values inside the interval between the lowest and the highest quantile, the ends included."""

    higher_is_better = None
    is_differentiable = False
    full_state_update = False
    inside: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("inside", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, quantiles: Tensor, target: Tensor) -> None:
        """Add values.

        Args:
            quantiles: (..., Q) rising along the last axis.
            target: (...) what came to be.
        """
        self.inside += ((quantiles[..., 0] <= target) & (target <= quantiles[..., -1])).sum()
        self.count += target.numel()

    def compute(self) -> Tensor:
        """Return the share; NaN before any value."""
        return self.inside / self.count


class Residuals(Metric):
    """Truth minus quantiles of evenly spaced windows, kept for calibration.

    Args:
        limit: Windows kept at most in each process; more are thinned out by doubling the spacing.
    """

    full_state_update = False
    residuals: list[Tensor]
    masks: list[Tensor]

    def __init__(self, limit: int = 1024) -> None:
        super().__init__()
        self.limit = limit
        self.spacing, self.seen = 1, 0
        self.add_state("residuals", [], dist_reduce_fx="cat")
        self.add_state("masks", [], dist_reduce_fx="cat")

    def reset(self) -> None:
        """Forget all windows."""
        super().reset()
        self.spacing, self.seen = 1, 0

    def update(self, forecast: Tensor, truth: Tensor, mask: Tensor | None = None) -> None:
        """Add a batch: forecast (B, H, D, Q), truth (B, H, D), mask (B, H, D) bool or None."""
        chosen = slice(-self.seen % self.spacing, None, self.spacing)
        self.seen += len(forecast)
        residual = truth.unsqueeze(-1) - forecast
        self.residuals.append(residual[chosen])
        self.masks.append((torch.ones_like(truth, dtype=torch.bool) if mask is None else mask)[chosen])
        while sum(map(len, self.residuals)) > self.limit:
            self.spacing *= 2
            self.residuals = [torch.cat(self.residuals)[::2]]
            self.masks = [torch.cat(self.masks)[::2]]

    def compute(self) -> tuple[Tensor, Tensor]:
        """Return (N, H, D, Q) residuals and their (N, H, D) mask."""
        residuals, masks = self.residuals, self.masks
        if isinstance(residuals, Tensor) and isinstance(masks, Tensor):  # joined over processes
            return residuals, masks
        return torch.cat(residuals), torch.cat(masks)
