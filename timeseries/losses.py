"""Losses over observed values alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.errors import ConfigError
from .quantiles import check_quantiles

LossName = Literal["mse", "mae", "pinball"]


class MaskedLoss(nn.Module):
    """Mean of an elementwise loss over the observed values of a batch.

    ``mse``: ``(y - f)^2``; ``mae``: ``|y - f|``; ``pinball``: ``max(tau (y - q), (tau - 1) (y - q))``, averaged over
    the levels; the quantiles minimise it.

    Args:
        name: ``mse``, ``mae`` or ``pinball``.
        quantiles: Levels of the forecast's last axis; needed by ``pinball`` and refused by the others.

    Raises:
        ConfigError: The loss does not fit the quantiles.
    """

    def __init__(self, name: LossName, quantiles: Sequence[float] = ()) -> None:
        super().__init__()
        losses: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
            "mse": lambda f, y: F.mse_loss(f, y, reduction="none"),
            "mae": lambda f, y: F.l1_loss(f, y, reduction="none"),
            "pinball": self._pinball,
        }
        if name not in losses:
            raise ConfigError(f"loss is {name!r}, expected one of {', '.join(losses)}")
        if (name == "pinball") != bool(quantiles):
            raise ConfigError(
                f"loss is {name!r} with quantiles {list(quantiles)}: quantiles are trained by loss=pinball, "
                "which needs them, e.g. [0.1, 0.5, 0.9]"
            )
        self._elementwise = losses[name]
        self.levels: Tensor
        self.register_buffer("levels", torch.tensor(check_quantiles(quantiles)), persistent=False)

    def forward(self, forecast: Tensor, truth: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the mean loss, 0 where nothing is observed.

        Args:
            forecast: (B, H, D), or (B, H, D, Q) for pinball.
            truth: (B, H, D).
            mask: (B, H, D) bool, True where observed; None where all is.
        """
        if mask is None:
            return self._elementwise(forecast, truth).mean()
        # What stands at unobserved places may be NaN, whose gradient survives a product with 0.
        loss = self._elementwise(forecast, torch.where(mask, truth, 0))
        weight = mask if loss.ndim == mask.ndim else mask.unsqueeze(-1).expand_as(loss)
        return torch.where(weight, loss, 0).sum() / weight.sum().clamp(min=1)

    def _pinball(self, forecast: Tensor, truth: Tensor) -> Tensor:
        error = truth.unsqueeze(-1) - forecast
        return torch.maximum(self.levels * error, (self.levels - 1) * error)
