"""Time columns in every form, time zones, steps, seasons and calendar marks."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scanweave.core.errors import ConfigError, DataError
from scanweave.timeseries.data import Calendar, ReadOptions, infer_freq, read_series

from .tables import frame, write


def read(folder, times, **options):
    lines = ["date,load", *(f"{time},{i}" for i, time in enumerate(times))]
    return read_series(write(folder, lines), ReadOptions(target="load", **options))


def shown(series) -> list[str]:
    return [str(time) for time in series.calendar.index(series.times)]


@pytest.mark.parametrize(
    ("form", "freq"),
    [
        ("%Y-%m-%d %H:%M:%S", "h"),
        ("%Y-%m-%dT%H:%M", "h"),
        ("%Y-%m-%d %H:%M:%S.%f", "15min"),
        ("%Y/%m/%d %H:%M", "30min"),
        ("%d.%m.%Y %H:%M", "h"),
        ("%d %b %Y %H:%M", "h"),
        ("%m/%d/%Y %I:%M %p", "6h"),
        ("%Y-%m-%d", "D"),
        ("%Y%m%d", "D"),
        ("%Y-%m", "MS"),
        ("%Y", "YS-JAN"),
    ],
)
def test_forms_of_time(tmp_path, form, freq):
    expected = pd.date_range("2020-01-01", periods=80, freq=freq)
    series = read(tmp_path, expected.strftime(form))
    assert series.calendar == Calendar(freq)
    assert series.calendar.index(series.times).equals(expected.as_unit("us"))


def test_midnight_without_a_clock_time(tmp_path):
    times = pd.date_range("2020-01-13", periods=60, freq="h")
    for form in ("%Y-%m-%d", "%d/%m/%Y"):
        texts = [time.strftime(form if time.hour == 0 else f"{form} %H:%M") for time in times]
        assert read(tmp_path, texts).calendar.index(read(tmp_path, texts).times).equals(times.as_unit("us"))


@pytest.mark.parametrize(("unit", "factor"), [("s", 1), ("ms", 10**3), ("us", 10**6), ("ns", 10**9)])
def test_numbers_since_1970(tmp_path, caplog, unit, factor):
    expected = pd.date_range("2021-05-06", periods=30, freq="h")
    seconds = (expected - pd.Timestamp(0)) // pd.Timedelta("1s")
    series = read(tmp_path, seconds * factor)
    assert series.calendar.index(series.times).equals(expected.as_unit("us"))
    assert f"read as {unit} since 1970 (2021-05-06 00:00:00" in caplog.text
    caplog.clear()
    assert (
        shown(read(tmp_path, seconds * factor, time_unit=unit, timezone="Asia/Tokyo"))[0] == "2021-05-06 09:00:00+09:00"
    )
    assert caplog.text == ""


def test_numbers_out_of_range(tmp_path):
    with pytest.raises(DataError, match="out of range as s since 1970"):
        read(tmp_path, [1.6e18, 1.7e18], time_unit="s")


def test_plain_steps_have_no_calendar(tmp_path):
    series = read(tmp_path, range(7, 40))
    assert (series.calendar, series.calendar.period, series.calendar.mark_names) == (Calendar(""), 1, ())
    assert series.calendar.after(39, 3).tolist() == [40, 41, 42]
    with pytest.raises(DataError, match="plain step counts"):
        read(tmp_path, range(7, 40), freq="h")
    with pytest.raises(DataError, match=r"row 4.*found 9.5, expected a time or a whole number"):
        read(tmp_path, [7, 8, 9.5, 10])
    with pytest.raises(DataError, match=r"1 rows missing in 1 gaps at step '1'"):
        read(tmp_path, [7, 8, 10, 11])


@pytest.mark.parametrize("time", ["", "yesterday", "2024-13-01 00:00:00"])
def test_a_cell_that_is_no_time(tmp_path, time):
    times = [f"2024-01-01 {hour:02}:00:00" for hour in range(9)]
    times[4] = time
    with pytest.raises(DataError, match=r"row 6, column 'date': found (no time|'yesterday'|'2024-13-01 00:00:00')"):
        read(tmp_path, times)


def test_a_column_that_is_no_time(tmp_path):
    with pytest.raises(DataError, match=r"row 2, column 'date': found 'north'.*--data.time"):
        read(tmp_path, ["north", "south"])


def test_day_and_month_are_settled_by_numbers_above_12(tmp_path):
    days = pd.date_range("2020-01-05", periods=30, freq="D")
    for form in ("%d/%m/%Y", "%m/%d/%Y"):
        series = read(tmp_path, days.strftime(form))
        assert series.calendar.index(series.times).equals(days.as_unit("us"))


def test_an_open_order_of_day_and_month_is_refused(tmp_path):
    hours = pd.date_range("2020-02-01", periods=48, freq="h").strftime("%d/%m/%Y %H:%M")
    with pytest.raises(DataError, match=r"row 2.*'01/02/2020 00:00' can be day/month or month/day.*--data.dayfirst"):
        read(tmp_path, hours)
    assert shown(read(tmp_path, hours, dayfirst=True))[-1] == "2020-02-02 23:00:00"
    days = pd.date_range("2020-01-02", periods=5, freq="D").strftime("%m/%d/%Y")
    assert shown(read(tmp_path, days, dayfirst=False))[-1] == "2020-01-06 00:00:00"


def test_points_mean_day_first_with_a_word(tmp_path, caplog):
    assert shown(read(tmp_path, ["01.02.2020", "02.02.2020", "03.02.2020"]))[0] == "2020-02-01 00:00:00"
    assert "day.month.year" in caplog.text


def test_mixed_orders_of_day_and_month_are_refused(tmp_path):
    with pytest.raises(
        DataError, match=r"row 2 \('13/01/2020'\) can only be day/month and row 4 \('01/15/2020'\) only"
    ):
        read(tmp_path, ["13/01/2020", "01/02/2020", "01/15/2020"])
    with pytest.raises(DataError, match=r"row 2.*'13/01/2020', which is no month/day date"):
        read(tmp_path, ["13/01/2020", "14/01/2020"], dayfirst=False)
    with pytest.raises(DataError, match=r"row 3.*'01/14/2020', which is no day/month date"):
        read(tmp_path, ["01/12/2020", "01/14/2020"], dayfirst=True)


@pytest.mark.parametrize(
    ("offset", "zone"), [("Z", "UTC"), ("+00:00", "UTC"), ("+05:30", "UTC+05:30"), ("-0300", "UTC-03:00")]
)
def test_one_offset_is_kept(tmp_path, offset, zone):
    times = pd.date_range("2024-03-30", periods=48, freq="h")
    series = read(tmp_path, [f"{time:%Y-%m-%dT%H:%M:%S}{offset}" for time in times])
    assert series.calendar.timezone == zone
    local = series.calendar.index(series.times)
    assert local.tz_localize(None).equals(times.as_unit("us"))
    assert Calendar("h", zone).after(series.times[-1], 1)[0] - series.times[-1] == 3600 * 10**6


@pytest.mark.parametrize("offset", ["Z", " UTC", "+00", "-05", "+05:30", "-0530"])
@pytest.mark.parametrize("clock", ["", ":00", ":00.5", ":00.25", ":00.125", ":00.123456"])
def test_offsets_follow_any_clock_time(tmp_path, offset, clock):
    series = read(tmp_path, [f"2024-01-01T{hour:02}:00{clock}{offset}" for hour in range(5)])
    assert series.calendar.timezone is not None
    text = pd.Timestamp(f"2024-01-01T00:00{clock}{offset.strip()}")
    assert series.calendar.index(series.times)[0] == text


@pytest.mark.parametrize("form", ["%Y-%m", "%d-%m-%Y", "%Y-%m-%d", "%d-%m-%Y %H:%M", "%Y-%m-%d %H:%M:%S.%f"])
def test_dates_are_not_taken_for_offsets(tmp_path, form):
    times = pd.date_range("2000-01-01", periods=40, freq="MS").strftime(form)
    assert read(tmp_path, times, dayfirst=True).calendar == Calendar("MS")


@pytest.mark.parametrize("day", ["2024-03-31", "2024-10-27"])
def test_offsets_that_change_with_the_clocks_need_the_zone(tmp_path, day):
    times = pd.date_range(day, periods=48, freq="h", tz="Europe/Berlin")
    texts = [time.isoformat() for time in times]
    with pytest.raises(DataError, match=r"the offset from UTC changes from .* --data.timezone Europe/Berlin"):
        read(tmp_path, texts)
    series = read(tmp_path, texts, timezone="Europe/Berlin")
    assert series.calendar == Calendar("h", "Europe/Berlin")
    assert series.calendar.index(series.times).equals(times.as_unit("us"))


def test_times_with_and_without_zone_are_not_mixed(tmp_path):
    times = ["2024-01-01T00:00:00Z", "2024-01-01T01:00:00", "2024-01-01T02:00:00Z"]
    with pytest.raises(DataError, match=r"row 3.*'2024-01-01T01:00:00', expected an offset.*must not be mixed"):
        read(tmp_path, times)
    with pytest.raises(DataError, match=r"row 3.*'2024-01-01T02:00:00Z', expected no offset"):
        read(tmp_path, times[1:])


@pytest.mark.parametrize("day", ["2024-03-31", "2024-10-27"])
def test_local_times_over_a_clock_change(tmp_path, day):
    times = pd.date_range(day, periods=48, freq="h", tz="Europe/Berlin")
    texts = times.strftime("%Y-%m-%d %H:%M:%S")
    with pytest.raises(DataError, match=r"--data\.timezone"):
        read(tmp_path, texts)
    series = read(tmp_path, texts, timezone="Europe/Berlin")
    assert series.calendar.index(series.times).equals(times.as_unit("us"))


def test_days_over_a_clock_change_are_regular():
    series = read_series(frame(90, freq="D", tz="Europe/Berlin"))
    assert series.calendar == Calendar("D", "Europe/Berlin")
    following = series.calendar.index(series.calendar.after(series.times[-1], 2))
    assert [str(time) for time in following] == ["2024-03-31 00:00:00+01:00", "2024-04-01 00:00:00+02:00"]


def test_an_hour_that_never_was_is_refused(tmp_path):
    with pytest.raises(DataError, match="2024-03-31 02:00:00 is a nonexistent time"):
        read(tmp_path, pd.date_range("2024-03-31", periods=24, freq="h"), timezone="Europe/Berlin")


def test_unknown_names_are_refused(tmp_path):
    times = pd.date_range("2024-03-31", periods=24, freq="h")
    with pytest.raises(ConfigError, match="no time zone 'Europe/Atlantis'"):
        read(tmp_path, times, timezone="Europe/Atlantis")
    with pytest.raises(ConfigError, match=r"'H' is no step .*mean h"):
        read(tmp_path, times, freq="H")


@pytest.mark.parametrize(
    ("freq", "period", "marks"),
    [
        ("30s", 2, ("second", "minute", "hour", "day of week", "day of month", "day of year")),
        ("min", 1440, ("minute", "hour", "day of week", "day of month", "day of year")),
        ("15min", 96, ("minute", "hour", "day of week", "day of month", "day of year")),
        ("h", 24, ("hour", "day of week", "day of month", "day of year")),
        ("6h", 4, ("hour", "day of week", "day of month", "day of year")),
        ("7h", 24, ("hour", "day of week", "day of month", "day of year")),
        ("D", 7, ("day of week", "day of month", "day of year")),
        ("B", 5, ("day of week", "day of month", "day of year")),
        ("W-SUN", 52, ("day of month", "day of year")),
        ("W-WED", 52, ("day of month", "day of year")),
        ("MS", 12, ("day of year",)),
        ("ME", 12, ("day of year",)),
        ("BME", 12, ("day of year",)),
        ("QS-OCT", 4, ("day of year",)),
        ("QE-DEC", 4, ("day of year",)),
        ("YS-JAN", 1, ()),
        ("YE-DEC", 1, ()),
    ],
)
def test_steps_are_inferred_with_season_and_marks(freq, period, marks):
    index = pd.date_range("2022-01-01", periods=70, freq=freq)
    assert infer_freq(index) == freq
    calendar = Calendar(freq)
    assert (calendar.period, calendar.mark_names) == (period, marks)
    times = calendar.integers(index)
    assert calendar.index(times).equals(index.as_unit("us"))
    assert calendar.after(times[29], 40).tolist() == times[30:].tolist()
    values = calendar.marks(times)
    assert values.dtype == np.float32
    assert values.shape == (70, len(marks))
    assert np.abs(values).max(initial=0) <= 0.5


@pytest.mark.parametrize("freq", ["15min", "h", "D", "B", "W-SUN", "MS", "ME", "QS-JAN", "QE-DEC", "YS-JAN"])
@pytest.mark.parametrize("count", [2, 3, 30])
def test_steps_are_inferred_over_gaps_and_from_few_rows(freq, count):
    index = pd.date_range("2022-01-01", periods=max(count, 4) * 3, freq=freq)
    kept = index[:count] if count < 30 else index.delete([10, 11, 12, 40])
    found = infer_freq(kept)
    calendar = Calendar(found)
    times = calendar.integers(kept)
    # Few rows may fit more steps than one (QE-MAR and QE-DEC are the same days): the rows must lie on the step found.
    assert np.isin(times, calendar.between(times[0], times[-1])).all()
    if count == 30:
        whole = calendar.integers(index)[: np.searchsorted(index, kept[-1]) + 1]
        np.testing.assert_array_equal(calendar.between(times[0], times[-1]), whole)


def test_calendar_marks_are_scaled_to_half_a_unit():
    calendar = Calendar("h")
    times = calendar.integers(pd.DatetimeIndex(["2024-01-01 00:00", "2024-12-31 23:00", "2023-07-02 12:00"]))
    np.testing.assert_allclose(
        calendar.marks(times),
        [[-0.5, -0.5, -0.5, -0.5], [0.5, 1 / 6 - 0.5, 0.5, 0.5], [12 / 23 - 0.5, 0.5, 1 / 30 - 0.5, 182 / 365 - 0.5]],
        atol=1e-6,
    )


def test_calendar_marks_are_those_of_the_zone():
    times = Calendar("h").integers(pd.DatetimeIndex(["2024-06-30 22:00"]))
    assert Calendar("h", "Europe/Berlin").marks(times)[0, 0] == -0.5
    assert Calendar("h").marks(times)[0, 0] == np.float32(22 / 23 - 0.5)


def test_periods_and_period_columns():
    table = frame(24, freq="MS")
    table.index = table.index.to_period("M")
    series = read_series(table)
    assert series.calendar.freq == "MS"
