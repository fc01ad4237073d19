"""Metrics that torchmetrics lacks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class SampleMean(Metric):
    """Mean over samples of a value known per batch: sum_b n_b v_b / sum_b n_b; a NaN stays a NaN.

    torchmetrics' MeanMetric drops NaN, and ignores weights where it is told not to.
    """

    is_differentiable = False
    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, value: Tensor, size: int) -> None:
        """Add a batch's mean ``value`` (a scalar) over ``size`` samples."""
        self.total += value.detach().to(self.total.dtype) * size
        self.count += size

    def compute(self) -> Tensor:
        """Return the mean over all samples."""
        return self.total / self.count
