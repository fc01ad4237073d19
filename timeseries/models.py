"""The forecasting tasks that the command line names: ``--model TPGN``, ``--model Scan``, and the controls."""

from __future__ import annotations

from typing import Any

from .data.spec import ForecastSpec
from .forecasters.base import Forecaster
from .forecasters.controls import (
    CalendarLinearNetwork,
    DLinearNetwork,
    LastValueNetwork,
    SeasonalNaiveNetwork,
    WindowMeanNetwork,
)
from .forecasters.patchtst import PatchTSTNetwork
from .forecasters.scan import ScanNetwork
from .forecasters.tpgn import TPGNNetwork
from .forecasters.tsm2 import TSM2Network
from .task import ForecastTask


class TPGN(ForecastTask):
    """TPGN, a parallel gated network over the series folded by its period.

    Args:
        period: Columns of the grid; the data's seasonal period by default.
        hidden_size: Features of both branches.
        norm: Normalise each window.
        future_marks: Let the head read the calendar marks of the horizon.
        options: The arguments of :class:`ForecastTask`.
    """

    def __init__(
        self,
        period: int | None = None,
        hidden_size: int = 2,
        norm: bool = True,
        future_marks: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.period, self.hidden_size, self.norm, self.future_marks = period, hidden_size, norm, future_marks

    def configure_forecaster(self, spec: ForecastSpec) -> Forecaster:
        return TPGNNetwork(
            spec,
            quantiles=self.quantiles,
            period=self.period,
            hidden_size=self.hidden_size,
            norm=self.norm,
            future_marks=self.future_marks,
        )


class Scan(ForecastTask):
    """Any registered mixer over steps or patches, with a direct head for the horizon.

    Args:
        mixer: A registered mixer's name; ``scanweave models`` lists them.
        depth: Blocks.
        width: Features of a token.
        patch: Steps in a token.
        independent: Whether each channel is a sequence of its own; else all join in each token.
        norm: Normalise each window.
        future_marks: Let the head read the calendar marks of the horizon.
        mlp_ratio: Hidden features of the feed-forward layers in multiples of width; 0 leaves them out.
        dropout: Rate inside the feed-forward layers.
        options: The arguments of :class:`ForecastTask`.
    """

    def __init__(
        self,
        mixer: str = "mamba",
        depth: int = 2,
        width: int = 32,
        patch: int = 8,
        independent: bool = True,
        norm: bool = True,
        future_marks: bool = True,
        mlp_ratio: float = 2.0,
        dropout: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.mixer, self.depth, self.width, self.patch = mixer, depth, width, patch
        self.independent, self.norm, self.future_marks = independent, norm, future_marks
        self.mlp_ratio, self.dropout = mlp_ratio, dropout

    def configure_forecaster(self, spec: ForecastSpec) -> Forecaster:
        return ScanNetwork(
            spec,
            quantiles=self.quantiles,
            mixer=self.mixer,
            depth=self.depth,
            width=self.width,
            patch=self.patch,
            independent=self.independent,
            norm=self.norm,
            future_marks=self.future_marks,
            mlp_ratio=self.mlp_ratio,
            dropout=self.dropout,
        )


class TSM2(ForecastTask):
    """TSM2, selective mixing over time and, in both directions, over variables.

    Args:
        mixer: A registered mixer's name, for both axes.
        depth: Layers.
        width: Features of a token.
        patch: Steps in a token.
        norm: Normalise each window.
        future_marks: Let the head read the calendar marks of the horizon.
        dropout: Rate of dropout after each mixer.
        options: The arguments of :class:`ForecastTask`.
    """

    def __init__(
        self,
        mixer: str = "mamba",
        depth: int = 2,
        width: int = 32,
        patch: int = 8,
        norm: bool = True,
        future_marks: bool = True,
        dropout: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.mixer, self.depth, self.width, self.patch = mixer, depth, width, patch
        self.norm, self.future_marks, self.dropout = norm, future_marks, dropout

    def configure_forecaster(self, spec: ForecastSpec) -> Forecaster:
        return TSM2Network(
            spec,
            quantiles=self.quantiles,
            mixer=self.mixer,
            depth=self.depth,
            width=self.width,
            patch=self.patch,
            norm=self.norm,
            future_marks=self.future_marks,
            dropout=self.dropout,
        )


class PatchTST(ForecastTask):
    """PatchTST: attention over overlapping patches of each channel, to compare scans with.

    Args:
        depth: Encoder layers.
        width: Features of a token.
        heads: Attention heads.
        patch: Steps in a token.
        stride: Steps from one token to the next.
        norm: Normalise each window.
        mlp_ratio: Hidden features of the feed-forward layers in multiples of width.
        dropout: Rate everywhere in the encoder and before the head.
        options: The arguments of :class:`ForecastTask`.
    """

    def __init__(
        self,
        depth: int = 3,
        width: int = 16,
        heads: int = 4,
        patch: int = 16,
        stride: int = 8,
        norm: bool = True,
        mlp_ratio: float = 8.0,
        dropout: float = 0.3,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.depth, self.width, self.heads, self.patch, self.stride = depth, width, heads, patch, stride
        self.norm, self.mlp_ratio, self.dropout = norm, mlp_ratio, dropout

    def configure_forecaster(self, spec: ForecastSpec) -> Forecaster:
        return PatchTSTNetwork(
            spec,
            quantiles=self.quantiles,
            depth=self.depth,
            width=self.width,
            heads=self.heads,
            patch=self.patch,
            stride=self.stride,
            norm=self.norm,
            mlp_ratio=self.mlp_ratio,
            dropout=self.dropout,
        )


class DLinear(ForecastTask):
    """DLinear: linear maps of the moving average and of the remainder.

    Args:
        kernel: Steps of the moving average, odd.
        norm: Normalise each window.
        options: The arguments of :class:`ForecastTask`.
    """

    def __init__(self, kernel: int = 25, norm: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.kernel, self.norm = kernel, norm

    def configure_forecaster(self, spec: ForecastSpec) -> Forecaster:
        return DLinearNetwork(spec, quantiles=self.quantiles, kernel=self.kernel, norm=self.norm)


class CalendarLinear(ForecastTask):
    """A linear map of the window and the last season's calendar marks.

    Args:
        norm: Normalise each window.
        options: The arguments of :class:`ForecastTask`.
    """

    def __init__(self, norm: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.norm = norm

    def configure_forecaster(self, spec: ForecastSpec) -> Forecaster:
        return CalendarLinearNetwork(spec, quantiles=self.quantiles, norm=self.norm)


class UntrainedTask(ForecastTask):
    """Base of the rules that have nothing to train: ``fit`` measures (and calibrates) them on validation and ends.

    Args:
        options: The arguments of :class:`ForecastTask`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        """Do nothing; Lightning goes on to validation."""

    def on_train_epoch_end(self) -> None:
        self.trainer.should_stop = True

    def configure_optimizers(self) -> None:
        return None


class SeasonalNaive(UntrainedTask):
    """The last season, repeated.

    Args:
        period: Steps in a season; the data's by default.
        options: The arguments of :class:`ForecastTask`.
    """

    def __init__(self, period: int | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.period = period

    def configure_forecaster(self, spec: ForecastSpec) -> Forecaster:
        return SeasonalNaiveNetwork(spec, quantiles=self.quantiles, period=self.period)


class WindowMean(UntrainedTask):
    """The mean of the lookback."""

    def configure_forecaster(self, spec: ForecastSpec) -> Forecaster:
        return WindowMeanNetwork(spec, quantiles=self.quantiles)


class LastValue(UntrainedTask):
    """The last value."""

    def configure_forecaster(self, spec: ForecastSpec) -> Forecaster:
        return LastValueNetwork(spec, quantiles=self.quantiles)
