"""Made-up specs and batches for the forecasters' tests."""

from __future__ import annotations

import torch

from scanweave.timeseries.data.spec import ForecastSpec


def make_spec(**changes) -> ForecastSpec:
    values = {"lookback": 48, "horizon": 24, "channels": 1, "marks": 4, "freq": "h", "period": 24} | changes
    names = tuple(f"y{i}" for i in range(values["channels"]))
    return ForecastSpec(**values, target_names=names)


def make_batch(spec: ForecastSpec, size: int = 5, seed: int = 0, dtype: torch.dtype = torch.float32) -> dict:
    draw = torch.Generator().manual_seed(seed)
    steps = spec.lookback + spec.horizon

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw, dtype=dtype)

    return {
        "past": normal(size, spec.lookback, spec.channels),
        "future": normal(size, spec.horizon, spec.channels),
        "marks": torch.rand(size, steps, spec.marks, generator=draw, dtype=dtype) - 0.5,
        "covariates": normal(size, spec.lookback, spec.covariates),
        "known": normal(size, steps, spec.known),
        "series": torch.zeros(size, dtype=torch.int64),
        "start": torch.arange(size),
    }
