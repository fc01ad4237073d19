"""ScanNetwork: any registered mixer over steps or patches, and a direct head for the whole horizon."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ...core import Stack
from ..data.spec import ForecastSpec
from .patches import PatchForecaster


class ScanNetwork(PatchForecaster):
    """Mix the patches of each sequence with a stack of blocks.

    Args:
        spec: Sizes of the data.
        quantiles: Levels to forecast; empty for a point forecast.
        mixer: A registered mixer's name.
        depth: Blocks.
        width: Features of a token.
        patch: Steps in a token; 1 for one token per step. The first token is completed with the window's first value.
        independent: Whether each channel is a sequence of its own, with shared weights; else all join in each token.
        norm: Normalise each window.
        future_marks: Let the head read the calendar marks of the horizon.
        mlp_ratio: Hidden features of the blocks' feed-forward layers in multiples of width; 0 leaves them out.
        dropout: Rate inside the feed-forward layers.
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
        independent: bool = True,
        norm: bool = True,
        future_marks: bool = True,
        mlp_ratio: float = 2.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(
            spec,
            quantiles=quantiles,
            width=width,
            patch=patch,
            independent=independent,
            norm=norm,
            future_marks=future_marks,
        )
        self.blocks = Stack(width, depth, mixer, mlp_ratio=mlp_ratio, dropout=dropout)

    def mix(self, tokens: Tensor) -> Tensor:
        """Run the stack over each sequence."""
        mixed, _ = self.blocks(tokens.flatten(0, 1))
        return mixed.unflatten(0, tokens.shape[:2])
