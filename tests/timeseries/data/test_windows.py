"""Windows against plain slicing; memory that does not grow with their number."""

from __future__ import annotations

import pickle
import tracemalloc

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from scanweave.timeseries.data import (
    Calendar,
    ReadOptions,
    SeriesSet,
    StandardScaler,
    WindowArrays,
    WindowDataset,
    read_series,
    split_series,
)

from .tables import frame


def panel(lengths: list[int], columns: int, seed: int = 0) -> SeriesSet:
    """Read series of the given lengths: the first column the target, the last one known, the others covariates."""
    tables = [frame(n, columns, seed=seed + i).assign(id=f"s{i}") for i, n in enumerate(lengths)]
    known = ["abcdefgh"[columns - 1]] if columns > 2 else None
    return read_series(pd.concat(tables), ReadOptions(id="id", target="a", features="MS", known=known, freq="h"))


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    columns=st.integers(1, 4),
    lookback=st.integers(1, 12),
    horizon=st.integers(1, 9),
    data=st.data(),
)
def test_windows_are_slices(lengths, columns, lookback, horizon, data):
    series = panel(lengths, columns)
    scaler = StandardScaler(np.full((1, columns), 3.0), np.full((1, columns), 7.0))
    first = np.array([data.draw(st.integers(0, 5)) for _ in lengths])
    count = np.maximum(np.array(lengths) - first - lookback - horizon + 1, 0)
    dataset = WindowDataset(WindowArrays.build(series, scaler), first, count, lookback, horizon)
    assert len(dataset) == count.sum()
    expected = [(s, first[s] + i) for s in range(len(lengths)) for i in range(count[s])]
    batch = dataset.gather(range(len(dataset)))
    np.testing.assert_array_equal(batch["series"], [s for s, _ in expected])
    np.testing.assert_array_equal(batch["start"], [start for _, start in expected])
    marks = series.calendar.marks(series.times)
    for i, (s, start) in enumerate(expected):
        row = series.bounds[s] + start
        past, future = slice(row, row + lookback), slice(row + lookback, row + lookback + horizon)
        whole = slice(row, row + lookback + horizon)
        assert row + lookback + horizon <= series.bounds[s + 1]
        for name, values in {
            "past": ((series.targets - 3) / 7)[past],
            "future": ((series.targets - 3) / 7)[future],
            "covariates": ((series.covariates - 3) / 7)[past],
            "known": ((series.known - 3) / 7)[whole],
            "marks": marks[whole],
        }.items():
            np.testing.assert_array_equal(batch[name][i], values.astype(np.float32))
        one = dataset[i]
        assert one.keys() == batch.keys()
        assert all(torch.equal(one[name], batch[name][i]) for name in one)


def whole(table: pd.DataFrame, lookback: int, horizon: int, fill: str = "error") -> WindowDataset:
    series = read_series(table, ReadOptions(features="M", fill=fill))
    scaler = StandardScaler.fit(series.targets, None, series.columns.targets, "test")
    arrays = WindowArrays.build(series, scaler, masked=fill == "mask")
    zero = np.zeros(1, dtype=np.int64)
    return WindowDataset(arrays, zero, series.lengths - lookback - horizon + 1, lookback, horizon)


@pytest.mark.parametrize("workers", [0, 2])
def test_loaders_gather_whole_batches(workers):
    dataset = whole(frame(60, 2), 7, 5)
    loader = DataLoader(dataset, batch_size=16, num_workers=workers, collate_fn=WindowDataset.collate)
    batches = list(loader)
    assert [len(batch["past"]) for batch in batches] == [16, 16, 16, 1]
    for name, values in dataset.gather(range(49)).items():
        assert torch.equal(torch.cat([batch[name] for batch in batches]), values)
        assert all(batch[name].is_contiguous() for batch in batches)


def test_single_items_are_stacked_by_the_default_collate():
    dataset = whole(frame(30), 7, 5)
    batch = WindowDataset.collate([dataset[3], dataset[-1]])
    assert torch.equal(batch["past"], dataset.gather([3, len(dataset) - 1])["past"])


@pytest.mark.parametrize("index", [19, -20])
def test_an_index_outside_is_an_error(index):
    dataset = whole(frame(30), 7, 5)
    assert len(dataset) == 19
    with pytest.raises(IndexError):
        dataset[index]


def test_missing_targets_are_masked_and_zero():
    table = frame(30, 2)
    table.iloc[[4, 9], 0] = np.nan
    batch = whole(table, 6, 4, fill="mask").gather([0, 4])
    assert batch["past"].isfinite().all()
    assert (~batch["past_mask"][0]).nonzero().tolist() == [[4, 0]]
    assert (~batch["future_mask"][0]).nonzero().tolist() == [[3, 0]]
    assert (~batch["past_mask"][1]).nonzero().tolist() == [[0, 0], [5, 0]]
    assert (batch["past"][~batch["past_mask"]] == 0).all()


def test_a_batch_does_not_alias_the_data():
    dataset = whole(frame(30), 6, 4)
    dataset.gather([0])["past"].zero_()
    assert dataset.gather([0])["past"].abs().min() > 0


def test_memory_does_not_grow_with_the_number_of_windows():
    rows, lookback, horizon = 1_000_000, 168, 168
    values = np.random.default_rng(0).normal(size=(rows, 1))
    calendar = Calendar("min")
    first = pd.Timestamp("2020-01-01")
    times = calendar.after(int(calendar.integers(pd.DatetimeIndex([first]))[0]), rows)
    arrays = WindowArrays(
        targets=torch.from_numpy(values.astype(np.float32)),
        observed=None,
        covariates=torch.empty(rows, 0),
        known=torch.empty(rows, 0),
        marks=torch.from_numpy(calendar.marks(times)),
        bounds=np.array([0, rows]),
    )
    tracemalloc.start()
    try:
        dataset = WindowDataset(arrays, np.array([0]), np.array([rows - lookback - horizon + 1]), lookback, horizon)
        assert len(dataset) == 999_665
        batch = dataset.gather(range(0, 999_665, 31_240))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert batch["past"].shape == (32, 168, 1)
    # One index per window would be 8 MB, the windows themselves 1.3 GB; tensors are counted below.
    assert peak < 100_000
    # A tensor's pickle holds its storage: the dataset brings nothing beside the shared rows.
    shared = sum(values.numel() * values.element_size() for values in (arrays.targets, arrays.marks))
    assert len(pickle.dumps(dataset)) < shared + 100_000


def test_split_windows_share_the_arrays():
    series = panel([80], 1)
    arrays = WindowArrays.build(series, StandardScaler.identity(1))
    split = split_series(series, 6, 4)
    train, test = (WindowDataset(arrays, *split.windows(part), 6, 4) for part in ("train", "test"))
    assert train.arrays.targets.data_ptr() == test.arrays.targets.data_ptr()
