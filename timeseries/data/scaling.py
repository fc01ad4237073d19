"""Standard scaling of each channel, fitted in float64 on the training part alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from ...core.errors import DataError
from .options import logger
from .series import SeriesSet

Scale = Literal["global", "series", "none"]


class StandardScaler:
    """``(x - mean) / std`` per channel, over all series or per series.

    Statistics skip missing values. A constant channel is divided by 1, so that it stays finite.

    Args:
        mean: (G, C) float64, one row for each group of rows that share statistics.
        std: (G, C) float64, positive.
    """

    def __init__(self, mean: np.ndarray, std: np.ndarray) -> None:
        self.mean = np.atleast_2d(np.asarray(mean, dtype=np.float64))
        self.std = np.atleast_2d(np.asarray(std, dtype=np.float64))

    @classmethod
    def fit(cls, values: np.ndarray, groups: np.ndarray | None, names: Sequence[str], source: str) -> StandardScaler:
        """Fit the scaler on training rows.

        Args:
            values: (N, C) float64, NaN where missing.
            groups: (N,) group of each row, 0 to G - 1 in ascending order; None for one group.
            names: (C,) names of the channels, for messages.
            source: File name, for messages.

        Returns:
            The scaler; constant channels are logged in one line.

        Raises:
            DataError: A channel has no value at all in a group.
        """
        groups = np.zeros(len(values), dtype=np.int64) if groups is None else groups
        count = int(groups.max(initial=0)) + 1
        bounds = np.searchsorted(groups, np.arange(count + 1))
        mean, std = np.zeros((count, len(names))), np.ones((count, len(names)))
        flat = set()
        for group in range(count):
            rows = values[bounds[group] : bounds[group + 1]]
            empty = np.isnan(rows).all(0)
            if empty.any():
                raise DataError(
                    f"{source}: column {names[int(empty.argmax())]!r} has no value in the training part"
                    f"{' of a series' if count > 1 else ''}; expected at least one to scale by"
                )
            mean[group] = np.nanmean(rows, axis=0)
            # Of the centred values: the rounding error of a large mean does not enter.
            spread = np.sqrt(np.nanmean(np.square(rows - mean[group]), axis=0))
            constant = spread <= 1e-12 * np.abs(mean[group])
            std[group] = np.where(constant, 1.0, spread)
            flat.update(np.flatnonzero(constant).tolist())
        if flat:
            listed = ", ".join(names[i] for i in sorted(flat))
            logger.warning("%s: constant in the training part, so left unscaled (divided by 1): %s", source, listed)
        return cls(mean, std)

    @classmethod
    def identity(cls, channels: int) -> StandardScaler:
        """Return a scaler that changes nothing."""
        return cls(np.zeros((1, channels)), np.ones((1, channels)))

    def columns(self, part: slice) -> StandardScaler:
        """Return the scaler of some of the channels."""
        return StandardScaler(self.mean[:, part], self.std[:, part])

    def _of(self, statistic: np.ndarray, groups: np.ndarray | None) -> np.ndarray:
        return statistic if groups is None or len(statistic) == 1 else statistic[groups]

    def transform(self, values: np.ndarray, groups: np.ndarray | None = None) -> np.ndarray:
        """Scale values.

        Args:
            values: (N, C) float64.
            groups: (N,) group of each row; not needed where all share one.

        Returns:
            (N, C) float64.
        """
        return (values - self._of(self.mean, groups)) / self._of(self.std, groups)

    def inverse(self, values: np.ndarray, groups: np.ndarray | None = None) -> np.ndarray:
        """Undo `transform`.

        Args:
            values: (N, C), scaled.
            groups: (N,) group of each row; not needed where all share one.

        Returns:
            (N, C) float64 in original units.
        """
        return np.asarray(values, dtype=np.float64) * self._of(self.std, groups) + self._of(self.mean, groups)

    def state_dict(self) -> dict[str, Any]:
        """Return the statistics as plain lists, exact to the bit."""
        return {"mean": self.mean.tolist(), "std": self.std.tolist()}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> StandardScaler:
        """Rebuild a scaler from `state_dict`'s result."""
        width = len(state["mean"][0])
        return cls(np.reshape(state["mean"], (-1, width)), np.reshape(state["std"], (-1, width)))


class SeriesScaling:
    """The scaler of all columns, and which of its groups each series takes.

    Args:
        scaler: Fitted scaler.
        groups: (S,) group of each series; None for one group.
        names: Names of the groups' series.
    """

    def __init__(self, scaler: StandardScaler, groups: np.ndarray | None, names: tuple[str, ...]) -> None:
        self.scaler = scaler
        self.groups = groups
        self.names = names

    @classmethod
    def fit(cls, series: SeriesSet, rows: np.ndarray, scale: Scale, state: Mapping[str, Any] | None) -> SeriesScaling:
        """Fit on each series' first `rows` rows, or take a trained model's statistics where it has them.

        Series that a per-series state does not know are fitted on their own rows.
        """
        columns = series.columns.values
        if state is not None:
            scaler, names = StandardScaler.from_state(state), tuple(state["names"])
            if not names:
                return cls(scaler, None, ())
            new = np.array([s for s, name in enumerate(series.names) if name not in names], dtype=np.int64)
            if len(new):
                logger.warning("%s: %d series unknown to the model are scaled by themselves", series.source, len(new))
                fresh = cls.fit(series.select(new), rows[new], "series", None)
                scaler = StandardScaler(
                    np.vstack([scaler.mean, fresh.scaler.mean]), np.vstack([scaler.std, fresh.scaler.std])
                )
                names += fresh.names
            place = {name: i for i, name in enumerate(names)}
            return cls(scaler, np.array([place[name] for name in series.names]), names)
        if scale == "none":
            return cls(StandardScaler.identity(len(columns)), None, ())
        # Known columns have values in future rows too; those are no training rows.
        used = np.concatenate(
            [np.arange(low, low + count) for low, count in zip(series.bounds[:-1], rows, strict=True)]
        )
        values = np.concatenate([part[used] for part in (series.targets, series.covariates, series.known)], axis=1)
        if scale == "global":
            return cls(StandardScaler.fit(values, None, columns, series.source), None, ())
        groups = np.repeat(np.arange(len(series)), rows)
        return cls(StandardScaler.fit(values, groups, columns, series.source), np.arange(len(series)), series.names)

    def state_dict(self) -> dict[str, Any]:
        """Return plain values: the statistics and the names of their groups."""
        return {**self.scaler.state_dict(), "names": list(self.names)}
