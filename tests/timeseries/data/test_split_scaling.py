"""Parts in time order, scaling of the training part; the future changes nothing before it."""

from __future__ import annotations

import json
import logging
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scanweave.core.errors import ConfigError, DataError
from scanweave.timeseries.data import ForecastData, ReadOptions, StandardScaler, read_series, split_series
from scanweave.timeseries.data.split import PARTS, shortest

from .tables import frame


def split(rows: int, lookback: int, horizon: int, **options):
    return split_series(read_series(frame(rows)), lookback, horizon, **options)


def test_the_papers_split_of_17420_rows():
    parts = split(17420, 168, 336)
    assert parts.edges.tolist() == [[0, 10452, 13936, 17420]]
    assert [tuple(int(value[0]) for value in parts.windows(part)) for part in PARTS] == [
        (0, 10452 - 504 + 1),
        (10452 - 168, 3484 - 336 + 1),
        (13936 - 168, 3484 - 336 + 1),
    ]


@pytest.mark.parametrize(("freq", "per_day"), [("h", 24), ("15min", 96)])
def test_the_usual_ett_months(freq, per_day):
    series = read_series(frame(700 * per_day, freq=freq))
    parts = split_series(series, 96, 96, by="ett")
    month = 30 * per_day
    assert parts.edges.tolist() == [[0, 12 * month, 16 * month, 20 * month]]
    assert parts.windows("test")[1].tolist() == [4 * month - 96 + 1]


def test_the_ett_months_need_rows_and_step():
    with pytest.raises(DataError, match=r"needs 14400 rows .* found 500"):
        split(500, 9, 9, by="ett")
    with pytest.raises(DataError, match="for steps of h or 15min, found 'D'"):
        split_series(read_series(frame(900, freq="D")), 9, 9, by="ett")


def test_a_split_by_dates_in_the_datas_zone():
    series = read_series(frame(240, tz="Asia/Tokyo"))
    parts = split_series(series, 12, 6, by="dates", val_from="2024-01-05", test_from="2024-01-08 12:00")
    assert parts.edges.tolist() == [[0, 96, 180, 240]]
    moved = split_series(series, 12, 6, by="dates", val_from="2024-01-04T15:00Z", test_from="2024-01-08T03:00Z")
    assert moved.edges.tolist() == parts.edges.tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val_from": "2024-01-03"}, "needs both"),
        ({"val_from": "2024-01-03", "test_from": "2024-01-02"}, "must lie before"),
        ({"val_from": "soon", "test_from": "2024-01-02"}, r"--data.val_from: found 'soon', expected a time"),
    ],
)
def test_dates_that_make_no_split(options, message):
    with pytest.raises(ConfigError, match=message):
        split(240, 12, 6, by="dates", **options)


@pytest.mark.parametrize("ratios", [(0.6, 0.2), (0.6, 0.3, 0.2), (1.2, -0.2, 0)])
def test_ratios_that_make_no_split(ratios):
    with pytest.raises(ConfigError, match="three shares"):
        split(240, 12, 6, ratios=ratios)


def test_a_part_may_be_left_out():
    parts = split(101, 12, 6, ratios=(0.7, 0, 0.3))
    assert parts.edges.tolist() == [[0, 71, 71, 101]]
    assert parts.windows("val")[1].tolist() == [0]
    only_test = split(101, 12, 6, ratios=(0, 0, 1))
    assert only_test.windows("test") == (np.array([0]), np.array([101 - 18 + 1]))


@settings(max_examples=80, deadline=None)
@given(
    more=st.integers(0, 200),
    lookback=st.integers(1, 40),
    horizon=st.integers(1, 40),
    ratios=st.sampled_from([(0.6, 0.2, 0.2), (0.7, 0.1, 0.2), (0.8, 0.2, 0), (1, 0, 0)]),
)
def test_parts_do_not_share_forecast_rows(more, lookback, horizon, ratios):
    rows = shortest(lookback, horizon, ratios) + more
    series = read_series(frame(rows), ReadOptions(freq="h"))
    parts = split_series(series, lookback, horizon, ratios=ratios)
    forecast = []
    for part in PARTS:
        (first,), (count,) = parts.windows(part)
        if count:
            assert first >= 0
            forecast.append((first + lookback, first + count - 1 + lookback + horizon))
    assert forecast[0][0] >= lookback
    assert forecast[-1][1] <= rows
    for before, after in pairwise(forecast):
        assert before[1] <= after[0]
    # All rows past the first lookback are forecast by some window of their part.
    assert sum(high - low for low, high in forecast) == rows - lookback


def test_the_shortest_length_is_the_shortest():
    for lookback, horizon in ((24, 12), (5, 40), (168, 168)):
        least = shortest(lookback, horizon, (0.6, 0.2, 0.2))
        assert len(split(least, lookback, horizon).edges) == 1
        with pytest.raises(DataError, match=f"the series has {least - 1} rows, too few .* {least} rows would do"):
            split(least - 1, lookback, horizon)


def test_short_series_are_left_out_with_a_report(caplog):
    table = pd.concat([frame(n).assign(id=name) for name, n in {"long": 200, "mid": 40, "tiny": 9}.items()])
    parts = split_series(read_series(table, ReadOptions(id="id")), 24, 6)
    assert (parts.windows("train")[1] > 0).tolist() == [True, False, False]
    assert "2 of 3 series are too short for a train window of 24 + 6 rows" in caplog.text
    assert "mid (40 rows), tiny (9 rows)" in caplog.text
    with pytest.raises(DataError, match="series 'long' has 200 rows"):
        split_series(read_series(table, ReadOptions(id="id")), 240, 6)


def test_scaling_and_back():
    values = np.random.default_rng(0).normal(1e6, 3, (500, 3))
    scaler = StandardScaler.fit(values, None, "abc", "test")
    scaled = scaler.transform(values)
    np.testing.assert_allclose(scaled.mean(0), 0, atol=1e-9)
    np.testing.assert_allclose(scaled.std(0), 1, rtol=1e-9)
    np.testing.assert_allclose(scaler.inverse(scaled), values, rtol=1e-14)


def test_scaling_per_series():
    values = np.concatenate([np.full((50, 1), 10.0), np.full((30, 1), -3.0)]) + np.random.default_rng(0).normal(
        size=(80, 1)
    )
    groups = np.repeat([0, 1], [50, 30])
    scaler = StandardScaler.fit(values, groups, "a", "test")
    np.testing.assert_allclose(scaler.mean[:, 0], [values[:50].mean(), values[50:].mean()])
    np.testing.assert_allclose(scaler.inverse(scaler.transform(values, groups), groups), values)


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e9, -3e29])
def test_a_constant_column_stays_finite_with_one_warning(caplog, constant):
    caplog.set_level(logging.WARNING)
    values = np.stack([np.full(300, constant), np.arange(300.0), np.full(300, constant)], axis=1)
    scaler = StandardScaler.fit(values, None, "abc", "test")
    assert np.abs(scaler.transform(values)[:, [0, 2]]).max() <= 1e-12 * abs(constant)
    assert [record.getMessage() for record in caplog.records] == [
        "test: constant in the training part, so left unscaled (divided by 1): a, c"
    ]


def test_scaling_skips_missing_values():
    values = np.array([[1.0], [np.nan], [3.0]])
    scaler = StandardScaler.fit(values, None, "a", "test")
    assert (scaler.mean.item(), scaler.std.item()) == (2.0, 1.0)
    with pytest.raises(DataError, match="column 'b' has no value in the training part"):
        StandardScaler.fit(np.full((3, 1), np.nan), None, "b", "test")


def test_large_values_are_scaled_in_float64():
    values = np.array([[9e29], [-9e29], [3e29]])
    assert np.isfinite(StandardScaler.fit(values, None, "a", "test").transform(values)).all()


def test_the_scalers_state_is_exact_in_json():
    scaler = StandardScaler.fit(np.random.default_rng(1).normal(size=(99, 2)), None, "ab", "test")
    again = StandardScaler.from_state(json.loads(json.dumps(scaler.state_dict())))
    np.testing.assert_array_equal(scaler.mean, again.mean)
    np.testing.assert_array_equal(scaler.std, again.std)


def everything_before_test(table: pd.DataFrame, scale: str) -> list[np.ndarray]:
    data = ForecastData.from_frame(
        table, id="id", target="a", features="MS", known=["c"], lookback=12, horizon=6, scale=scale, fill="ffill"
    )
    data.setup("fit")
    found = [data.scaler.mean, data.scaler.std, data.split.edges]
    for part in ("train", "val"):
        dataset = data.dataset(part)
        found += [value.numpy() for value in dataset.gather(range(len(dataset))).values()]
    return found


@pytest.mark.parametrize("scale", ["global", "series", "none"])
def test_the_future_leaves_what_lies_before_it_bitwise_unchanged(scale):
    tables = [frame(n, 3, seed=n).assign(id=str(n)) for n in (200, 150)]
    for table in tables:
        table.iloc[[20, 21, 130], 0] = np.nan
    before = everything_before_test(pd.concat(tables), scale)
    changed = [table.copy() for table in tables]
    for table in changed:
        first = len(table) - int(len(table) * 0.2)
        table.iloc[first:, :3] = np.random.default_rng(7).normal(-900, 1e4, (len(table) - first, 3))
    after = everything_before_test(pd.concat(changed), scale)
    assert len(before) == len(after) == 3 + 2 * 7
    for one, two in zip(before, after, strict=True):
        assert one.dtype == two.dtype
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("scale", ["global", "series"])
def test_validation_rows_leave_the_scaler_unchanged(scale):
    table = frame(200, 3).assign(id="x")
    before = everything_before_test(table, scale)
    table.iloc[120:160, :3] *= 50
    after = everything_before_test(table, scale)
    for i in range(3):
        np.testing.assert_array_equal(before[i], after[i])
    assert any(not np.array_equal(one, two) for one, two in zip(before, after, strict=True))
