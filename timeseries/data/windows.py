"""Windows into shared arrays: an index per window is never stored, a batch is one gather."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from .scaling import StandardScaler
from .series import SeriesSet


@dataclass(frozen=True)
class WindowArrays:
    """The scaled rows of all series, shared by every dataset over them.

    Args:
        targets: (N, D) float32, 0 where missing.
        observed: (N, D) bool, False where missing; None where nothing is.
        covariates: (N, P) float32.
        known: (N, K) float32.
        marks: (N, M) float32.
        bounds: (S + 1,) int64 first row of each series.
    """

    targets: Tensor
    observed: Tensor | None
    covariates: Tensor
    known: Tensor
    marks: Tensor
    bounds: np.ndarray

    @classmethod
    def build(
        cls, series: SeriesSet, scaler: StandardScaler, groups: np.ndarray | None = None, masked: bool = False
    ) -> WindowArrays:
        """Scale the series and compute their calendar marks.

        Args:
            series: The series in original units.
            scaler: Scaler of all columns: targets, covariates, known.
            groups: (S,) the scaler's group of each series; None for one group.
            masked: Whether missing targets are allowed, and told by masks.
        """
        rows = None if groups is None else np.repeat(groups, np.diff(series.bounds))
        first, second = series.targets.shape[1], series.targets.shape[1] + series.covariates.shape[1]

        def scaled(values: np.ndarray, part: slice) -> Tensor:
            # A missing value becomes the training mean.
            return torch.from_numpy(np.nan_to_num(scaler.columns(part).transform(values, rows)).astype(np.float32))

        return cls(
            targets=scaled(series.targets, slice(0, first)),
            observed=torch.from_numpy(~np.isnan(series.targets)) if masked else None,
            covariates=scaled(series.covariates, slice(first, second)),
            known=scaled(series.known, slice(second, None)),
            marks=torch.from_numpy(series.calendar.marks(series.times)),
            bounds=series.bounds,
        )


class WindowDataset(Dataset[dict[str, Tensor]]):
    """All windows of lookback + horizon rows that start in a range of rows of each series.

    Memory does not grow with the number of windows. Items are dicts of tensors (see `gather`); a loader that is given
    `collate` gets a whole batch by one gather.

    Args:
        arrays: Shared rows.
        first: (S,) first window's first row in each series.
        count: (S,) number of windows in each series.
        lookback: Rows of the past (L).
        horizon: Rows to forecast (H).
        series: (S,) numbers that the batch's ``series`` gives; by default 0 to S - 1.
        offset: (S,) added to the batch's ``start``, where the rows are the end of a longer series.
        with_future: Whether batches carry the targets of the horizon.
    """

    def __init__(
        self,
        arrays: WindowArrays,
        first: np.ndarray,
        count: np.ndarray,
        lookback: int,
        horizon: int,
        *,
        series: np.ndarray | None = None,
        offset: np.ndarray | None = None,
        with_future: bool = True,
    ) -> None:
        self.arrays = arrays
        self.lookback = lookback
        self.horizon = horizon
        self.with_future = with_future
        used = np.flatnonzero(count)
        self._ends = np.cumsum(count[used])
        self._before = self._ends - count[used]
        self._first = np.asarray(first)[used]
        self._rows = arrays.bounds[:-1][used]
        self._series = used if series is None else np.asarray(series)[used]
        self._offset = np.zeros_like(used) if offset is None else np.asarray(offset)[used]

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def locate(self, indices: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return for each window its series, its start within the series, and its first row in the arrays.

        Raises:
            IndexError: An index is not in the dataset.
        """
        index = np.asarray(indices, dtype=np.int64)
        if len(index) and (index.min() < 0 or index.max() >= len(self)):
            raise IndexError(f"window {index.min()} to {index.max()} asked for, the dataset has {len(self)}")
        block = np.searchsorted(self._ends, index, side="right")
        start = self._first[block] + index - self._before[block]
        return self._series[block], start + self._offset[block], start + self._rows[block]

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        index = index + len(self) if index < 0 else index
        return {name: value[0] for name, value in self.gather([index]).items()}

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        return self.gather(indices)

    def gather(self, indices: Sequence[int] | np.ndarray) -> dict[str, Tensor]:
        """Return a batch of windows.

        Args:
            indices: (B,) windows.

        Returns:
            ``past`` (B, L, D), ``future`` (B, H, D) unless they are unknown, ``marks`` (B, L + H, M), ``covariates``
            (B, L, P), ``known`` (B, L + H, K), all float32; ``series`` and ``start`` (B,) int64; where values may be
            missing ``past_mask`` and ``future_mask`` bool, True where observed.
        """
        series, start, row = self.locate(indices)
        past = torch.from_numpy(row)
        future = past + self.lookback
        arrays, width = self.arrays, self.lookback + self.horizon
        batch = {
            "past": _take(arrays.targets, past, self.lookback),
            "marks": _take(arrays.marks, past, width),
            "covariates": _take(arrays.covariates, past, self.lookback),
            "known": _take(arrays.known, past, width),
            "series": torch.from_numpy(series),
            "start": torch.from_numpy(start),
        }
        if arrays.observed is not None:
            batch["past_mask"] = _take(arrays.observed, past, self.lookback)
        if self.with_future:
            batch["future"] = _take(arrays.targets, future, self.horizon)
            if arrays.observed is not None:
                batch["future_mask"] = _take(arrays.observed, future, self.horizon)
        return batch

    @staticmethod
    def collate(items: Any) -> dict[str, Tensor]:
        """Pass on a gathered batch; stack single items."""
        return items if isinstance(items, dict) else default_collate(items)


def _take(values: Tensor, start: Tensor, length: int) -> Tensor:
    """Return ``values[s : s + length]`` for each start, (B, length, C)."""
    rows, channels = values.shape
    # Every window as one row of an overlapping view: a copy of whole blocks, not of single rows.
    windows = values.as_strided((max(rows - length + 1, 0), length * channels), (channels, 1))
    return windows.index_select(0, start).view(len(start), length, channels)
