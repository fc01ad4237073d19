"""Encodings, delimiters and number signs: read right with a word, or refused with the reason."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from scanweave.core.errors import ConfigError, DataError
from scanweave.timeseries.data import ReadOptions, read_series

from .tables import frame, hourly_lines, hours, write

VALUES = [1.5, 2.25, -3.125, 4.0, 1250.5]


def cells(decimal: str) -> list[str]:
    return [f"{value}".replace(".", decimal) for value in VALUES]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_encodings_are_found(tmp_path, encoding):
    lines = hourly_lines(cells("."), header="date,Größe")
    series = read_series(write(tmp_path, lines, encoding))
    assert series.columns.targets == ("Größe",)
    np.testing.assert_array_equal(series.targets[:, 0], VALUES)


def test_latin_1_is_found_and_said(tmp_path, caplog):
    series = read_series(write(tmp_path, hourly_lines(cells("."), header="date,Größe"), "latin-1"))
    assert series.columns.targets == ("Größe",)
    assert "encoding='latin-1'" in caplog.text


def test_a_wrong_encoding_is_refused(tmp_path):
    path = write(tmp_path, hourly_lines(cells("."), header="date,Größe"), "latin-1")
    with pytest.raises(DataError, match=r"no utf-8 text .*--data.encoding"):
        read_series(path, ReadOptions(encoding="utf-8"))
    with pytest.raises(DataError, match="no encoding 'utf-99'"):
        read_series(path, ReadOptions(encoding="utf-99"))


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_delimiters_are_found(tmp_path, delimiter, caplog):
    lines = [line.replace(",", delimiter) for line in hourly_lines(cells("."))]
    series = read_series(write(tmp_path, lines))
    np.testing.assert_array_equal(series.targets[:, 0], VALUES)
    assert ("delimiter=" in caplog.text) == (delimiter != ",")


def test_semicolons_with_decimal_comma(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    lines = ["date;load;temperature", *(f"{time};{cell};7,5" for time, cell in zip(hours(5), cells(","), strict=True))]
    series = read_series(write(tmp_path, lines), ReadOptions(target="load", features="MS"))
    np.testing.assert_array_equal(series.targets[:, 0], VALUES)
    np.testing.assert_array_equal(series.covariates[:, 0], 7.5)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1
    assert "delimiter=';', decimal=','" in said[0]


@pytest.mark.parametrize(
    ("written", "decimal", "thousands"),
    [
        (["1.234,5", "12,25", "2.001.234,0"], ",", "."),
        (['"1,234.5"', "12.25", '"2,001,234.0"'], ".", ","),
        (["1 234,5", "12,25", "2 001 234,0"], ",", " "),
        (["1\xa0234,5", "12,25", "2\xa0001\xa0234,0"], ",", "\xa0"),
        (["1'234.5", "12.25", "2'001'234.0"], ".", "'"),
    ],
)
def test_thousands_signs_are_found(tmp_path, caplog, written, decimal, thousands):
    lines = ["date;load", *(f"{time};{cell}" for time, cell in zip(hours(3), written, strict=True))]
    series = read_series(write(tmp_path, lines))
    np.testing.assert_array_equal(series.targets[:, 0], [1234.5, 12.25, 2001234.0])
    assert f"thousands={thousands!r}" in caplog.text


def test_points_that_group_digits_leave_dates_alone(tmp_path):
    days = ["30.12.2023", "31.12.2023", "01.01.2024"]
    lines = ["date;load", *(f"{day};{cell}" for day, cell in zip(days, ["1.234,5", "12,25", "7,0"], strict=True))]
    series = read_series(write(tmp_path, lines))
    assert series.calendar.freq == "D"
    assert str(series.calendar.index(series.times)[-1].date()) == "2024-01-01"


def test_ambiguous_commas_are_refused_and_settled_by_an_option(tmp_path):
    lines = ["date;load", *(f"{time};{cell}" for time, cell in zip(hours(3), ["1,234", "2,345", "3,456"], strict=True))]
    path = write(tmp_path, lines)
    with pytest.raises(
        DataError, match=r"'1,234' can be read in two ways; pass --data.decimal ',' or --data.thousands"
    ):
        read_series(path)
    np.testing.assert_array_equal(read_series(path, ReadOptions(decimal=",")).targets[:, 0], [1.234, 2.345, 3.456])
    np.testing.assert_array_equal(read_series(path, ReadOptions(thousands=",")).targets[:, 0], [1234, 2345, 3456])


def test_a_leading_zero_settles_the_comma(tmp_path):
    lines = ["date;load", *(f"{time};{cell}" for time, cell in zip(hours(3), ["0,234", "2,345", "3,456"], strict=True))]
    np.testing.assert_array_equal(read_series(write(tmp_path, lines)).targets[:, 0], [0.234, 2.345, 3.456])


def test_equal_signs_are_refused():
    with pytest.raises(ConfigError, match="must differ"):
        ReadOptions(decimal=",", delimiter=",")


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"PK\x03\x04rest", "Excel"),
        (b"\x1f\x8brest", "gzip"),
        (b"PAR1rest", "Parquet"),
        (b"a,b\0\n1,2\n" * 9, "zero bytes"),
    ],
)
def test_files_that_are_no_text_are_named(tmp_path, content, found):
    with pytest.raises(DataError, match=found):
        read_series(write(tmp_path, content))


def test_one_column_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"row 1: found one column.*--data.delimiter"):
        read_series(write(tmp_path, ["date", *hours(4)]))


def test_blank_rows_and_closing_delimiters_are_left_out(tmp_path):
    lines = hourly_lines(["1", "2", "3", "4"])
    lines = [lines[0] + ",", lines[1] + ",", "", "  ", *(line + "," for line in lines[2:]), "", ""]
    series = read_series(write(tmp_path, lines))
    np.testing.assert_array_equal(series.targets[:, 0], [1, 2, 3, 4])


def test_the_row_numbers_of_a_written_frame_are_left_out(tmp_path, caplog):
    path = tmp_path / "data.csv"
    frame(8, 2).reset_index().to_csv(path)
    assert read_series(path, ReadOptions(features="M")).columns.targets == ("a", "b")
    assert "nameless column" in caplog.text


def test_a_written_index_without_name_is_the_time(tmp_path):
    path = tmp_path / "data.csv"
    table = frame(8)
    table.index.name = None
    table.to_csv(path)
    series = read_series(path)
    assert (series.calendar.freq, len(series.times)) == ("h", 8)


def test_the_same_numbers_from_a_file_and_from_a_frame(tmp_path):
    table = frame(50, 3)
    table.to_csv(tmp_path / "data.csv")
    options = ReadOptions(features="M")
    one, two = read_series(tmp_path / "data.csv", options), read_series(table, options)
    np.testing.assert_array_equal(one.targets, two.targets)
    np.testing.assert_array_equal(one.times, two.times)


def test_a_frame_that_counts_its_rows_has_its_time_in_a_column():
    table = frame(50, 2)
    series = read_series(table.reset_index(), ReadOptions(features="M"))
    np.testing.assert_array_equal(series.times, read_series(table, ReadOptions(features="M")).times)
    assert series.columns == read_series(table, ReadOptions(features="M")).columns
    assert read_series(table[["a"]].reset_index(drop=True)).calendar.freq == ""


def test_columns_named_by_numbers():
    assert read_series(frame(9, 2).set_axis([0, 1], axis=1), ReadOptions(target="1")).columns.targets == ("1",)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_ends(tmp_path, end):
    series = read_series(write(tmp_path, end.join(hourly_lines(cells("."))) + end))
    np.testing.assert_array_equal(series.targets[:, 0], VALUES)


def test_quoted_cells_may_hold_delimiters_and_line_ends(tmp_path):
    lines = ['date,"load, in\nMW"', *(f'"{time}","{value}"' for time, value in zip(hours(5), VALUES, strict=True))]
    series = read_series(write(tmp_path, lines))
    assert series.columns.targets == ("load, in\nMW",)
    np.testing.assert_array_equal(series.targets[:, 0], VALUES)


@pytest.mark.parametrize("rows", [30, 20_000])
def test_a_quote_that_is_never_closed(tmp_path, rows):
    lines = hourly_lines(["1"] * rows)
    lines[5] = lines[5] + ',"'
    with pytest.raises(DataError, match=r"data.csv: .*(quote opened|EOF inside string|cells)"):
        read_series(write(tmp_path, lines))
