"""Each fault of a table, done to a table: what the message says, and what the options make of it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scanweave.core.errors import ConfigError, DataError
from scanweave.timeseries.data import ReadOptions, read_series

from .tables import frame, hourly_lines, hours, write

NUMBERS = [str(value) for value in range(1, 21)]


def read(folder, lines, **options):
    return read_series(write(folder, lines), ReadOptions(**options))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"data.csv: the file is empty \(0 rows found\)"),
        ("\n\n \n", "only blank rows found"),
        ("date,load\n", "found a header and 0 data rows; expected at least lookback"),
        ("date,load\n\n\n", "0 data rows"),
    ],
)
def test_empty_files(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        read(tmp_path, content)


def test_absent_files_and_folders(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_series(tmp_path / "absent.csv")
    with pytest.raises(DataError, match="is a folder"):
        read_series(tmp_path)


@pytest.mark.parametrize(
    ("option", "name", "near"), [("target", "laod", "load"), ("time", "dat", "date"), ("id", "daet", "date")]
)
def test_missing_columns_offer_the_nearest(tmp_path, option, name, near):
    with pytest.raises(
        DataError, match=rf"no column '{name}' \(did you mean '{near}'\?\); found date, load; set --data.{option}"
    ):
        read(tmp_path, hourly_lines(NUMBERS), **{option: name})


def test_missing_known_column(tmp_path):
    with pytest.raises(DataError, match=r"no column 'lod' \(did you mean 'load'\?\)"):
        read(tmp_path, hourly_lines(NUMBERS), target="load", known=["lod"])


def test_a_column_with_two_parts(tmp_path):
    with pytest.raises(DataError, match="column 'load' is given two parts"):
        read(tmp_path, hourly_lines(NUMBERS), target="load", known=["load"])


def test_an_open_target_lists_the_candidates(tmp_path):
    path = tmp_path / "data.csv"
    frame(9, 3).to_csv(path)
    with pytest.raises(DataError, match=r"found 3 columns that could be the target \(a, b, c\).*--data.target"):
        read_series(path)


def test_text_in_a_numeric_column(tmp_path):
    cells = [*NUMBERS[:15], "broken", *NUMBERS[16:]]
    with pytest.raises(DataError, match=r"data.csv: row 17, column 'load': found 'broken', expected a number \(1 such"):
        read(tmp_path, hourly_lines(cells), target="load")


def test_a_decimal_comma_in_a_column_of_points(tmp_path):
    cells = [f"{value}.5" for value in range(20)]
    cells[15] = '"1,5"'
    with pytest.raises(DataError, match=r"row 17, column 'load': found '1,5', expected a number.*--data.decimal ','"):
        read(tmp_path, hourly_lines(cells))


def test_a_decimal_comma_that_the_option_denies(tmp_path):
    lines = ["date;load", *(f"{time};1,5" for time in hours(5))]
    with pytest.raises(DataError, match=r"row 2, column 'load': found '1,5'.*--data.decimal ','"):
        read(tmp_path, lines, decimal=".", target="load")
    assert read(tmp_path, lines).targets[0, 0] == 1.5


@pytest.mark.parametrize(
    ("cell", "shown"), [("inf", "inf"), ("-Infinity", "-inf"), ("1e30", r"1e\+30"), ("-4e35", r"-4e\+35")]
)
def test_infinite_and_absurd_values(tmp_path, cell, shown):
    cells = [*NUMBERS[:8], cell, *NUMBERS[9:]]
    with pytest.raises(DataError, match=rf"row 10, column 'load': found {shown} \(1 such cells\)"):
        read(tmp_path, hourly_lines(cells))


def test_absurd_values_that_stand_for_missing_ones(tmp_path):
    cells = [*NUMBERS[:8], "1e30", *NUMBERS[9:]]
    series = read(tmp_path, hourly_lines(cells), missing_value=1e30, fill="mask")
    assert np.flatnonzero(np.isnan(series.targets[:, 0])).tolist() == [8]


def test_missing_values_are_counted_and_placed(tmp_path):
    cells = [*NUMBERS[:4], "", "", *NUMBERS[6:]]
    with pytest.raises(
        DataError, match=r"row 6 \(2024-01-01 04:00:00\), column 'load': found no value \(2 such cells\).*fill"
    ):
        read(tmp_path, hourly_lines(cells))


@pytest.mark.parametrize(
    ("fill", "expected"),
    [
        ("ffill", [1, 3, 3, 3, 5, 6]),
        ("zero", [1, 3, 0, 0, 5, 6]),
        ("mean_so_far", [1, 3, 2, 2, 5, 6]),
        ("mask", [1, 3, np.nan, np.nan, 5, 6]),
    ],
)
@pytest.mark.parametrize("rows_missing", [False, True])
def test_fill_policies(tmp_path, caplog, fill, expected, rows_missing):
    lines = hourly_lines(["1", "3", "", "", "5", "6"])
    if rows_missing:
        del lines[3:5]
    series = read(tmp_path, lines, fill=fill, freq="h")
    np.testing.assert_array_equal(series.targets[:, 0], expected)
    assert len(series.times) == 6
    if rows_missing:
        assert "2 rows missing in 1 gaps" in caplog.text


@pytest.mark.parametrize("fill", ["ffill", "mean_so_far"])
def test_nothing_to_fill_from(tmp_path, fill):
    with pytest.raises(DataError, match=r"row 2 .*there is no earlier value"):
        read(tmp_path, hourly_lines(["", "2", "3"]), fill=fill, target="load")


@pytest.mark.parametrize("fill", ["ffill", "zero", "mean_so_far"])
def test_filling_uses_the_past_alone(fill):
    table = frame(40, 2)
    table.iloc[[5, 6, 20], 0] = np.nan
    changed = table.copy()
    changed.iloc[21:] = changed.iloc[21:] * 3 + 100
    options = ReadOptions(features="M", fill=fill)
    np.testing.assert_array_equal(read_series(table, options).targets[:21], read_series(changed, options).targets[:21])


def test_filling_stays_within_a_series():
    table = pd.concat([frame(6).assign(id="x"), frame(6).assign(id="y")])
    table.iloc[6, 0] = np.nan
    with pytest.raises(DataError, match=r"row 6 of series 'y' .*no earlier value"):
        read_series(table, ReadOptions(id="id", fill="ffill"))


def test_gaps_are_listed(tmp_path):
    lines = hourly_lines(NUMBERS)
    del lines[14:17], lines[5]
    message = r"4 rows missing in 2 gaps at step 'h': 1 after row 5 \(2024-01-01 03:00:00\); 3 after row 13 "
    with pytest.raises(DataError, match=message):
        read(tmp_path, lines)


def test_unsorted_rows(tmp_path, caplog):
    lines = hourly_lines(NUMBERS)
    lines[6], lines[9] = lines[9], lines[6]
    with pytest.raises(DataError, match=r"row 8, column 'date': found an earlier time.*--data.sort true"):
        read(tmp_path, lines)
    series = read(tmp_path, lines, sort=True)
    np.testing.assert_array_equal(series.targets[:, 0], np.arange(1, 21))
    assert "sorted by time; the first out of order is row 8" in caplog.text


def test_newest_first_is_sorted_on_request(tmp_path):
    lines = hourly_lines(NUMBERS)
    lines[1:] = lines[:0:-1]
    np.testing.assert_array_equal(read(tmp_path, lines, sort=True).targets[:, 0], np.arange(1, 21))


@pytest.mark.parametrize(("policy", "expected"), [("keep_first", 3), ("keep_last", 30), ("mean", 16.5), ("sum", 33)])
def test_duplicates(tmp_path, caplog, policy, expected):
    lines = hourly_lines(NUMBERS)
    lines.insert(4, lines[3].rsplit(",", 1)[0] + ",30")
    with pytest.raises(DataError, match=r"row 5 \(2024-01-01 02:00:00\): found the same time as in row 4.*--data.id"):
        read(tmp_path, lines)
    series = read(tmp_path, lines, duplicates=policy)
    np.testing.assert_array_equal(series.targets[:, 0], [1, 2, expected, *range(4, 21)])
    assert "1 rows of a time already seen" in caplog.text


def test_an_irregular_step_is_placed(tmp_path):
    lines = hourly_lines(NUMBERS)
    lines[7] = lines[7].replace("06:00:00", "06:10:00")
    with pytest.raises(
        DataError, match=r"row 8 \(2024-01-01 06:10:00\), column 'date': found a time off the step 'h' found"
    ):
        read(tmp_path, lines)


def test_irregular_rows_are_resampled_on_request(tmp_path):
    times = pd.date_range("2024-01-01 00:07", periods=40, freq="17min")
    lines = ["date,load", *(f"{time},{i}" for i, time in enumerate(times))]
    for how, first in {"mean": 1.5, "sum": 6, "first": 0, "last": 3}.items():
        series = read(tmp_path, lines, freq="h", resample=how)
        assert series.targets[0, 0] == first
        assert series.calendar.freq == "h"
        assert np.ptp(np.diff(series.times)) == 0


def test_resampling_needs_a_step():
    with pytest.raises(ConfigError, match=r"resample='mean' needs the step.*--data.freq"):
        ReadOptions(resample="mean")


def test_a_step_that_would_need_a_million_rows(tmp_path):
    times = ["2024-01-01 00:00:00", "2024-01-01 00:00:01", "2024-01-01 00:00:02", "2024-03-01 00:00:00"]
    with pytest.raises(DataError, match=r"row 5 .*off the step 's'"):
        read(tmp_path, ["date,load", *(f"{time},1" for time in times)], fill="ffill")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("2024-01-01 05:00:00,6,7", "row 7: found 3 cells, expected 2"),
        ("2024-01-01 05:00:00", "row 7: found 1 cells, expected at least 2"),
    ],
)
def test_ragged_rows(tmp_path, row, message):
    lines = hourly_lines(NUMBERS)
    lines[6] = row
    with pytest.raises(DataError, match=message):
        read(tmp_path, lines, fill="mask")


def test_rows_that_are_all_longer_than_the_header(tmp_path):
    lines = hourly_lines(NUMBERS)
    with pytest.raises(DataError, match="row 2: found more cells than the 2 names in row 1"):
        read(tmp_path, [lines[0], *(line + ",5" for line in lines[1:])], delimiter=",")


def test_a_blank_row_does_not_shift_row_numbers(tmp_path):
    lines = hourly_lines([*NUMBERS[:10], "x", *NUMBERS[11:]])
    lines.insert(3, "")
    with pytest.raises(DataError, match="row 13, column 'load': found 'x'"):
        read(tmp_path, lines, target="load")


def test_doubled_columns(tmp_path):
    with pytest.raises(DataError, match="row 1: column 'load' stands there twice"):
        read(tmp_path, hourly_lines(["1,2", "3,4"], header="date,load,load"))
    with pytest.raises(DataError, match="DataFrame: column 'a' stands there twice"):
        read_series(frame(5, 2).set_axis(["a", "a"], axis=1))


def test_a_file_without_header(tmp_path):
    with pytest.raises(DataError, match=r"row 1: found data \('2024-01-01 00:00:00'\), expected a header"):
        read(tmp_path, hourly_lines(NUMBERS)[1:])


def test_series_named_by_numbers_are_no_data_row(tmp_path):
    path = tmp_path / "data.csv"
    frame(9, 2).set_axis(["0", "1"], axis=1).to_csv(path)
    assert read_series(path, ReadOptions(features="M")).columns.targets == ("0", "1")


def test_repeated_extremes_are_pointed_out(tmp_path, caplog):
    cells = [str(value % 7 + value / 100) for value in range(40)]
    cells[5] = cells[9] = cells[30] = "-9999"
    read(tmp_path, hourly_lines(cells))
    assert "column 'load' holds -9999 3 times" in caplog.text
    assert "--data.missing_value -9999" in caplog.text
    caplog.clear()
    series = read(tmp_path, hourly_lines(cells), missing_value=-9999, fill="ffill")
    assert series.targets.min() >= 0
    assert "holds" not in caplog.text


def test_ordinary_extremes_are_no_sentinels(tmp_path, caplog):
    rain = ["0"] * 30 + ["5", "5", "0.5", "1", "2", "0"] * 3
    read(tmp_path, hourly_lines(rain))
    assert caplog.text == ""


def test_columns_of_text_are_left_out_with_a_word(tmp_path, caplog):
    lines = hourly_lines([f"{number},sunny" for number in NUMBERS], header="date,load,weather")
    assert read(tmp_path, lines, features="M").columns.targets == ("load",)
    assert "hold no numbers are left out: weather" in caplog.text


def test_a_column_of_numbers_with_a_wrong_cell_is_not_left_out(tmp_path):
    lines = hourly_lines(
        [f"{number},{'x' if number == '4' else number}" for number in NUMBERS], header="date,load,other"
    )
    with pytest.raises(DataError, match="row 5, column 'other': found 'x'"):
        read(tmp_path, lines, features="M")


def test_true_and_false_count_as_one_and_zero(tmp_path):
    lines = hourly_lines([f"{number},{int(number) > 4}" for number in NUMBERS], header="date,load,open")
    series = read(tmp_path, lines, target="load", features="MS")
    np.testing.assert_array_equal(series.covariates[:, 0], np.arange(1, 21) > 4)


def test_one_row_is_too_few_to_tell_the_step(tmp_path):
    with pytest.raises(DataError, match="found 1 row in the longest series, expected at least two"):
        read(tmp_path, hourly_lines(["1"]))
    assert len(read(tmp_path, hourly_lines(["1"]), freq="h").times) == 1


def test_two_rows_are_enough(tmp_path):
    assert read(tmp_path, hourly_lines(["1", "2"])).calendar.freq == "h"


def test_long_tables_keep_unequal_series_apart(tmp_path):
    lines = ["date,town,load"]
    for i, time in enumerate(hours(6)):
        lines += [f"{time},007,{i}", *([f"{time},north,{10 * i}"] if i < 4 else [])]
    series = read(tmp_path, lines, id="town", target="load")
    assert series.names == ("007", "north")
    assert series.lengths.tolist() == [6, 4]
    np.testing.assert_array_equal(series.targets[:, 0], [0, 1, 2, 3, 4, 5, 0, 10, 20, 30])


def test_a_row_without_a_series_name(tmp_path):
    lines = ["date,town,load", "2024-01-01,a,1", "2024-01-02,,2", "2024-01-03,a,3"]
    with pytest.raises(DataError, match="row 3, column 'town': found no name"):
        read(tmp_path, lines, id="town", target="load")
