"""What a forecasting network must know of the data: sizes, frequency, names; plain values only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from ...core.errors import ConfigError


@dataclass(frozen=True)
class ForecastSpec:
    """The shape of a forecasting problem, as the networks see it.

    Args:
        lookback: Steps of the past that a forecast is made from (L).
        horizon: Steps to forecast (H).
        channels: Target channels (D).
        covariates: Columns known in the past only (P).
        known: Columns known in the future as well (K).
        marks: Calendar marks per step (M).
        freq: Step as a pandas offset alias (``"h"``, ``"15min"``, ``"MS"``); empty for integer steps.
        period: Length of a season in steps (24 for hourly data).
        target_names: Names of the target channels.

    Raises:
        ConfigError: A size is out of its range, or the names do not fit the channels.
    """

    lookback: int
    horizon: int
    channels: int = 1
    covariates: int = 0
    known: int = 0
    marks: int = 0
    freq: str = "h"
    period: int = 24
    target_names: tuple[str, ...] = ("target",)

    def __post_init__(self) -> None:
        for name, least in {"lookback": 1, "horizon": 1, "channels": 1, "period": 1}.items():
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected at least {least}")
        for name in ("covariates", "known", "marks"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected 0 or more")
        if len(self.target_names) != self.channels:
            raise ConfigError(f"target_names {self.target_names} has not one name for each of {self.channels} channels")

    def to_dict(self) -> dict[str, Any]:
        """Return plain values (the names as a list), fit for a checkpoint or JSON."""
        return {**asdict(self), "target_names": list(self.target_names)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ForecastSpec:
        """Rebuild a spec from `to_dict`'s result; an unknown or absent key is a ``ConfigError``."""
        known = {field.name for field in fields(cls)}
        if set(values) != known:
            raise ConfigError(f"a forecast spec has the keys {sorted(known)}, found {sorted(values)}")
        return cls(**{**values, "target_names": tuple(values["target_names"])})
