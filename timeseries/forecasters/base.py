"""What every forecaster shares: missing values, instance normalisation, quantile outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ..data.spec import ForecastSpec
from ..quantiles import check_quantiles, uncross

Batch = Mapping[str, Tensor]


class Forecaster(nn.Module):
    """Map a window of the past to the whole horizon at once.

    A subclass writes :meth:`decode`; this class fills missing values, normalises each window where asked
    and keeps quantiles in order.

    Args:
        spec: Sizes of the data.
        quantiles: Levels in (0, 1) to forecast; empty for a point forecast.
        norm: Subtract each window's mean and divide by its standard deviation, undone on the output.
    """

    def __init__(self, spec: ForecastSpec, *, quantiles: Sequence[float] = (), norm: bool = False) -> None:
        super().__init__()
        self.spec = spec
        self.quantiles = check_quantiles(quantiles)
        self.norm = norm
        self.outputs = max(1, len(self.quantiles))

    def forward(self, batch: Batch) -> Tensor:
        """Forecast a batch.

        Args:
            batch: ``past`` (B, L, D), ``marks`` (B, L + H, M), ``covariates`` (B, L, P), ``known`` (B, L + H, K),
                and ``past_mask`` (B, L, D) where values are missing; all scaled.

        Returns:
            (B, H, D), or (B, H, D, Q) in rising order of level when quantiles were asked for; scaled as ``past``.
        """
        past = fill_missing(batch["past"], batch.get("past_mask"))
        if self.norm:
            past, mean, deviation = standardise(past)
            out = self.order(self.decode(past, batch))
            out = torch.addcmul(mean.unsqueeze(-1), out, deviation.unsqueeze(-1))
        else:
            out = self.order(self.decode(past, batch))
        return out if self.quantiles else out.squeeze(-1)

    def order(self, raw: Tensor) -> Tensor:
        """Turn raw outputs (B, H, D, O) into quantiles in order, where there are any."""
        return uncross(raw, self.quantiles) if self.quantiles else raw

    def decode(self, past: Tensor, batch: Batch) -> Tensor:
        """Return raw outputs (B, H, D, O) for complete, possibly normalised ``past`` (B, L, D)."""
        raise NotImplementedError


def fill_missing(past: Tensor, mask: Tensor | None) -> Tensor:
    """Replace unobserved values by the mean of the window's observed ones, or 0 where there are none.

    Args:
        past: (B, L, D) values; what stands at unobserved places is ignored, NaN included.
        mask: (B, L, D) bool, True where observed; None where all are.

    Returns:
        (B, L, D) finite values.
    """
    if mask is None:
        return past
    observed = torch.where(mask, past, 0)
    mean = observed.sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)
    return torch.where(mask, past, mean)


def standardise(past: Tensor, eps: float = 1e-5) -> tuple[Tensor, Tensor, Tensor]:
    """Return the window with mean 0 and deviation 1 along time, its mean and its deviation (B, 1, D).

    Source: Kim et al. 2022, Reversible instance normalization (without the affine map).
    """
    variance, mean = torch.var_mean(past, dim=1, keepdim=True, correction=0)
    deviation = torch.sqrt(variance + eps)
    return (past - mean) / deviation, mean, deviation


def past_inputs(batch: Batch, lookback: int) -> Tensor:
    """Return what is known beside the target over the lookback: (B, L, M + K + P)."""
    return _join(batch["marks"][:, :lookback], batch["known"][:, :lookback], batch["covariates"])


def future_inputs(batch: Batch, lookback: int, *, marks: bool) -> Tensor:
    """Return what is known of the horizon: (B, H, K), or (B, H, M + K) with the calendar marks."""
    known = batch["known"][:, lookback:]
    return _join(batch["marks"][:, lookback:], known) if marks else known


def _join(*parts: Tensor) -> Tensor:
    wide = [part for part in parts if part.shape[-1]]
    return wide[0] if len(wide) == 1 else torch.cat(parts, dim=-1)
