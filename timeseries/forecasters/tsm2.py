"""TSM2: MambaMixer for series, which mixes selectively over time and over variables."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ...core import Bidirectional, create_mixer
from ...core.blocks import WeightedAverage, make_norm
from ...core.errors import ConfigError
from ..data.spec import ForecastSpec
from .patches import PatchForecaster


class TSM2Network(PatchForecaster):
    """Patches of each variable, mixed along time, then across the variables in both directions, layer by layer.

    Layer l: ``x = sum_i a_i h_i`` over the embedding and all earlier outputs; ``t = x + Time(norm(x))``;
    ``x' = sum_i b_i h_i + b_t t``; ``c = x' + Variables(norm(x'))``, where Variables adds a scan over the variables in
    their order and one in the reverse. t and c join the h that later layers average.

    Args:
        spec: Sizes of the data.
        quantiles: Levels to forecast; empty for a point forecast.
        mixer: A registered mixer's name, for both axes.
        depth: Layers.
        width: Features of a token.
        patch: Steps in a token.
        norm: Normalise each window.
        future_marks: Let the head read the calendar marks of the horizon.
        dropout: Rate of dropout after each mixer.

    Raises:
        ConfigError: depth is below 1, or patch is not within the lookback.

    Source:
        Behrouz et al., MambaMixer: efficient selective state space models with dual token and channel selection (2024),
        on TSM2. Patches, the head and covariates are those of the other forecasters here.
    """

    def __init__(
        self,
        spec: ForecastSpec,
        *,
        quantiles: Sequence[float] = (),
        mixer: str = "mamba",
        depth: int = 2,
        width: int = 32,
        patch: int = 8,
        norm: bool = True,
        future_marks: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(
            spec, quantiles=quantiles, width=width, patch=patch, independent=True, norm=norm, future_marks=future_marks
        )
        if depth < 1:
            raise ConfigError(f"TSM2: depth is {depth}, expected at least 1")
        self.time = nn.ModuleList(create_mixer(mixer, width) for _ in range(depth))
        self.variables = nn.ModuleList(
            Bidirectional(create_mixer(mixer, width), create_mixer(mixer, width)) for _ in range(depth)
        )
        self.averages = nn.ModuleList(WeightedAverage(count) for count in range(1, 2 * depth + 2))
        self.norms = nn.ModuleList(make_norm("rmsnorm", width) for _ in range(2 * depth + 1))
        self.dropout = nn.Dropout(dropout)

    def mix(self, tokens: Tensor) -> Tensor:
        """Mix along time and across the variables, (B, D, N, width)."""
        found = [tokens]
        for layer, (time, variables) in enumerate(zip(self.time, self.variables, strict=True)):
            for mixer, step, across in ((time, 2 * layer, False), (variables, 2 * layer + 1, True)):
                x = self.averages[step](found)
                y = x.transpose(1, 2) if across else x
                mixed, _ = mixer(self.norms[step](y).flatten(0, 1))
                mixed = mixed.unflatten(0, y.shape[:2])
                found.append(x + self.dropout(mixed.transpose(1, 2) if across else mixed))
        return self.norms[-1](self.averages[-1](found))
