"""``scanweave classify-series``: what it learns and writes, what it reads, what it refuses and how it says so."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from scanweave.core import DataError
from scanweave.core.classification import held_out
from scanweave.core.cli import main
from scanweave.core.storage import read_checkpoint
from scanweave.timeseries.classifiers import PanelData, PanelNetwork, bundled_sets
from scanweave.timeseries.classifiers.cli import CLASSIFY_SERIES, classifiers

SMALL = ["--model.mixer", "mingru", "--model.width", "8", "--model.depth", "1", "--model.patch", "4"]
SMALL += ["--model.stride", "2", "--trainer.accelerator", "cpu", "--trainer.enable_model_summary", "false"]


def run(*arguments: str) -> int:
    return main(["classify-series", *arguments], {"classify-series": CLASSIFY_SERIES})


def fit(path: Path | str, out: Path, *options: str, epochs: int = 2) -> int:
    return run(
        "fit", "--data.path", str(path), "--out", str(out), *SMALL, "--trainer.max_epochs", str(epochs), *options
    )


def waves(count: int = 40, steps: int = 24, seed: int = 0) -> tuple[np.ndarray, list[str]]:
    """Sine waves of two speeds with noise, and their names."""
    generator = np.random.default_rng(seed)
    names = ["slow", "fast"] * (count // 2)
    speed = np.array([1.0 if name == "slow" else 3.0 for name in names])
    phase = generator.uniform(0, 6, count)
    angle = 2 * np.pi * np.arange(steps) / steps
    values = np.sin(speed[:, None] * angle + phase[:, None]) + generator.normal(0, 0.1, (count, steps))
    return values.round(4), names


def write_wide(path: Path, **options) -> Path:
    values, names = waves(**options)
    table = pd.DataFrame(values, columns=[f"t{i}" for i in range(values.shape[1])])
    table.insert(0, "label", names)
    table.to_csv(path, index=False)
    return path


def write_long(path: Path, unequal: bool = False) -> Path:
    values, names = waves()
    rows = [
        {"id": f"s{i}", "step": t, "label": names[i], "up": values[i, t], "down": -values[i, t]}
        for i in range(len(values))
        for t in range(values.shape[1] - (i % 5 if unequal else 0))
    ]
    pd.DataFrame(rows).sample(frac=1, random_state=0).to_csv(path, index=False)
    return path


def write_ts(path: Path, lines: list[str], header: str = "@problemName x\n@classLabel true a b\n@data\n") -> Path:
    path.write_text(header + "\n".join(lines) + "\n")
    return path


def test_fit_test_predict_and_export(tmp_path: Path, capsys) -> None:
    out = tmp_path / "run"
    assert fit(write_wide(tmp_path / "waves.csv", count=80), out, "--model.lr", "1e-2", epochs=25) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    names = ("accuracy", "auroc", "calibration_error", "f1", "loss")
    assert set(metrics) == {"val/loss", *(f"test/{name}" for name in names)}
    assert metrics["test/accuracy"] > 0.9
    assert (out / "figures" / "confusion.png").stat().st_size > 10_000
    capsys.readouterr()
    assert run("test", "--out", str(out), "--ckpt_path", "best") == 0
    assert json.loads((out / "metrics.json").read_text()) == pytest.approx(metrics, rel=1e-5)

    other = pd.read_csv(write_wide(tmp_path / "other.csv", count=10, seed=1))
    (tmp_path / "waves.csv").unlink()  # the checkpoint alone knows classes and scale
    assert run("test", "--out", str(out), "--ckpt_path", "best", "--data.test_path", str(tmp_path / "other.csv")) == 0
    of_ten = json.loads((out / "metrics.json").read_text())["test/accuracy"]
    assert 10 * of_ten == pytest.approx(round(10 * of_ten))
    tables = []
    for table in (other.drop(columns="label"), other.assign(label="unheard of"), other.assign(label="")):
        table.to_csv(tmp_path / "other.csv", index=False, sep=";", decimal=",")
        predict = ["--out", str(out), "--ckpt_path", "best", "--data.path", str(tmp_path / "other.csv")]
        assert run("predict", *predict) == 0
        tables.append(pd.read_csv(out / "predictions.csv"))
    table = tables[0]
    assert all(table.equals(one) for one in tables)
    assert list(table.columns) == ["series", "label", "probability_fast", "probability_slow"]
    assert list(table["series"]) == [f"row {i}" for i in range(2, 12)]
    assert (table["label"] == waves(10, seed=1)[1]).mean() == pytest.approx(of_ten)
    assert np.allclose(table.filter(like="probability").sum(axis=1), 1)
    assert run("export", "--out", str(out), "--ckpt_path", "best") == 0


def test_a_resumed_run_ends_as_one_never_stopped(tmp_path: Path) -> None:
    path = write_wide(tmp_path / "waves.csv")
    constant = ["--model.schedule", "constant"]  # the cosine's end moves with max_epochs
    assert fit(path, tmp_path / "a", *constant, epochs=1) == 0
    again = ["--out", str(tmp_path / "a"), "--ckpt_path", "last", "--trainer.max_epochs", "3"]
    assert run("fit", *again) == 0
    assert fit(path, tmp_path / "b", *constant, epochs=3) == 0
    one, other = (read_checkpoint(tmp_path / name / "checkpoints" / "last.ckpt")["state_dict"] for name in "ab")
    assert all(torch.equal(one[key], other[key]) for key in other)


def test_long_files_of_unequal_series_are_read_in_any_order_of_rows(tmp_path: Path, caplog) -> None:
    data = PanelData(str(write_long(tmp_path / "long.csv", unequal=True)))
    data.setup("fit")
    assert "layout=long, label=label, id=id, time=step (guessed" in caplog.text
    values, names = waves()
    parts = [data._parts[part] for part in ("train", "val", "test")]
    assert sum(map(len, parts)) == 40
    for panel in parts:
        assert panel.channels == ("up", "down")
        for name, series, label in zip(panel.names, panel.series, panel.labels, strict=True):
            number = int(name[1:])
            np.testing.assert_array_equal(series[:, 0], values[number, : len(series)])
            assert len(series) == 24 - number % 5
            assert label == names[number]
    assert fit(tmp_path / "long.csv", tmp_path / "run", epochs=1) == 0


def test_empty_cells_at_the_end_shorten_a_wide_series(tmp_path: Path) -> None:
    table = pd.read_csv(write_wide(tmp_path / "waves.csv"))
    table.loc[0, "t20":] = np.nan
    table.to_csv(tmp_path / "waves.csv", index=False)
    data = PanelData(str(tmp_path / "waves.csv"))
    data.setup("fit")
    lengths = sorted(len(one) for part in data._parts.values() for one in part.series)
    assert lengths == [20] + [24] * 39


def test_the_split_holds_each_class_in_every_part_and_the_scaler_sees_training_alone(tmp_path: Path) -> None:
    data = PanelData(str(write_wide(tmp_path / "waves.csv")), seed=3)
    data.setup("fit")
    assert all(set(part.labels) == {"fast", "slow"} for part in data._parts.values())
    steps = np.concatenate(data._parts["train"].series)
    assert data.scaler.mean.item() == pytest.approx(steps.mean())
    rest, held = held_out(np.array([0] * 10 + [1] * 3 + [2]), 0.1, seed=0)
    assert sorted([*rest, *held]) == list(range(14))
    assert len(held) == 2  # one of ten, one of three, none of the single one
    assert 13 in rest


def test_bundled_sets_and_pairs_of_files_keep_their_own_test_part(tmp_path: Path) -> None:
    data = PanelData("JapaneseVowels")
    data.setup("fit")
    assert [len(data._parts[part]) for part in ("train", "val", "test")] == [216, 54, 370]
    assert data.context() == {"channels": 12, "classes": [str(k) for k in range(1, 10)], "counts": [24] * 9}
    lines = [f"{i},2,3:{'a' if i % 2 else 'b'}" for i in range(8)]
    write_ts(tmp_path / "X_TRAIN.ts", lines)
    write_ts(tmp_path / "X_TEST.ts", lines[:2])
    for path in (tmp_path, tmp_path / "X_TRAIN.ts"):
        pair = PanelData(str(path))
        pair.setup("fit")
        assert [len(pair._parts[part]) for part in ("train", "val", "test")] == [6, 2, 2]


def test_missing_values_are_refused_or_read_around(tmp_path: Path, capsys) -> None:
    path = write_ts(tmp_path / "x.ts", [f"{i},?,3,{i % 2}:{'a' if i % 2 else 'b'}" for i in range(12)])
    assert fit(path, tmp_path / "a") == 1
    assert "line 4: found no value at step 2 of 'channel 1' (12 missing values in 12 series)" in capsys.readouterr().err
    assert fit(path, tmp_path / "b", "--data.fill", "mask", epochs=1) == 0


def test_balanced_classes_weigh_the_rare_one(tmp_path: Path) -> None:
    table = pd.read_csv(write_wide(tmp_path / "waves.csv"))
    rare = pd.concat((table[table["label"] == "slow"], table[table["label"] == "fast"][:5]))
    rare.to_csv(tmp_path / "waves.csv", index=False)
    assert fit(tmp_path / "waves.csv", tmp_path / "run", "--model.class_weights", "balanced", epochs=1) == 0
    weights = read_checkpoint(tmp_path / "run/checkpoints/last.ckpt")["state_dict"]["criterion.weight"]
    assert weights.tolist() == pytest.approx([16 / (2 * 3), 16 / (2 * 13)])


def wide(label: object = "a", value: object = "1.5") -> str:
    rows = [f"{'ab'[i % 2]},{i},{i + 1}" for i in range(8)]
    return "\n".join(["label,t0,t1", *rows, f"{label},2,{value}"]) + "\n"


LONG = "id,step,label,v\ns0,0,a,1\ns0,1,a,2\ns1,0,b,1\ns1,1,b,3\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "the file is empty"),
        ("label,t0,t1\n", "0 data rows; expected at least a row of values"),
        (wide(label=""), "row 10, column 'label': found no label (1 such rows)"),
        (wide(value="many"), "row 10, column 't1': found 'many', expected a number"),
        (wide(value="inf"), "row 10, column 't1': found inf"),
        (wide(label="c"), None),
        ("label,t0,t1\na,1,2\na,2,3\na,4,5\n", "found the one class 'a' in 2 series, expected at least two"),
        ("lable,t0,t1\na,1,2\nb,2,3\n", "no column 'label' (did you mean 'lable'?) of labels; found lable, t0, t1"),
        ("1,2,3\n2,3,4\n", "row 1: found numbers alone (1, 2, 3, ...), expected a header row"),
        (LONG + "s1,1,b,4\n", "row 6: found the time 1 of series 's1' a second time"),
        (LONG + "s1,2,a,4\n", "row 6, column 'label': found 'a' in series 's1', whose first row says 'b'"),
        (LONG + ",2,a,4\n", "row 6, column 'id': found no name"),
        ("label,t0,t1\na,,\nb,1,2\n", "row 2: found no value at all"),
    ],
)
def test_bad_csv_files_are_refused_by_place(tmp_path: Path, text: str, said: str | None) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(text)
    data = PanelData(str(path))
    if said is None:  # a class of one series is trained on, and cannot be tested
        data.setup("fit")
        assert data.classes == ("a", "b", "c")
        return
    with pytest.raises(DataError) as error:
        data.setup("fit")
    assert str(error.value).startswith(f"{path}: ")
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("1,2,x:a", "line 12, channel 1, value 3: found 'x', expected a number or ?"),
        ("1,-inf,2:a", "line 12, channel 1, value 2: found -inf, expected a number below 1e+30 in size"),
        ("1,2:3,4:a", "line 12: found 2 channels, expected 1 as in the first series"),
        ("1,2:c", "line 12: found the label 'c', expected one of a, b (the line @classLabel)"),
        ("1,2:?", "line 12: found no label"),
        ("?,?:a", "line 12, channel 1: found no value at all"),
    ],
)
def test_bad_ts_files_are_refused_by_line(tmp_path: Path, line: str, said: str) -> None:
    path = write_ts(tmp_path / "x.ts", [*(f"{i},1:{'ab'[i % 2]}" for i in range(8)), line])
    with pytest.raises(DataError, match="^" + str(path)) as error:
        PanelData(str(path)).setup("fit")
    assert said in str(error.value)


def test_other_wrong_files_are_refused(tmp_path: Path) -> None:
    def refused(said: str, path: Path | str, stage: str = "fit", **options) -> None:
        with pytest.raises(DataError) as error:
            PanelData(str(path), **options).setup(stage)
        assert said in str(error.value)

    refused("no such file, folder or bundled set (did you mean 'GunPoint'?)", "Gunpoint")
    refused("found no .ts and no .csv file", tmp_path)
    lines = [f"{i},2,3:{'ab'[i % 2]}" for i in range(8)]
    train = write_ts(tmp_path / "x.ts", lines[::2] + lines[:2], "@classLabel true a b c\n@data\n")
    test = write_ts(tmp_path / "y.ts", ["1,2,3:c"], "@classLabel true a b c\n@data\n")
    refused("line 3: found the label 'c', which no training series has", train, test_path=str(test))
    wide = write_ts(tmp_path / "z.ts", ["1,2:3,4:a"])
    refused("found 2 channels, expected 1 as in the training data", train, test_path=str(wide))
    refused(
        "line 2: found no labels (@classLabel false)",
        write_ts(tmp_path / "n.ts", ["1,2"], "@classLabel false\n@data\n"),
    )
    refused("@targetLabel true, a file for regression", "Covid3Month")


@pytest.mark.parametrize("mixer", ["mamba", "mingru", "lstm", "retention", "rwkv7", "deltanet", "s4d"])
@pytest.mark.parametrize(("patch", "stride", "norm"), [(1, 1, False), (5, 2, True)])
def test_padding_changes_nothing(mixer: str, patch: int, stride: int, norm: bool) -> None:
    torch.manual_seed(0)
    network = PanelNetwork(2, 3, mixer=mixer, width=32, depth=2, patch=patch, stride=stride, norm=norm).eval()
    lengths = torch.tensor([9, 4, 1, 7])
    series = torch.randn(4, 9, 2)
    garbage = torch.full((4, 21, 2), 1e3)
    garbage[:, :9] = series
    together = network(garbage, lengths)
    for i, length in enumerate(lengths.tolist()):
        alone = network(series[i : i + 1, :length])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-4, atol=1e-5)


def test_missing_values_count_as_the_mean_and_norm_takes_level_and_spread_away() -> None:
    network = PanelNetwork(1, 2, mixer="mingru", width=8, depth=1, norm=True).eval()
    series, lengths = torch.randn(3, 12, 1), torch.tensor([12, 12, 12])
    torch.testing.assert_close(network(5 + 100 * series, lengths), network(series, lengths), rtol=1e-3, atol=1e-3)
    observed = torch.ones(3, 12, 1, dtype=torch.bool)
    observed[:, 3] = False
    holes = series.clone()
    holes[:, 3] = torch.nan
    filled = series.clone()
    filled[:, 3] = series[observed].view(3, 11, 1).mean(1)
    plain = PanelNetwork(1, 2, mixer="mingru", width=8, depth=1).eval()
    torch.testing.assert_close(plain(holes, lengths, observed), plain(filled, lengths))


def test_the_models_and_the_packaged_configuration(tmp_path: Path) -> None:
    assert classifiers() == ["ScanClassification"]
    config = ["--config", "timeseries/classify_japanese_vowels", "--trainer.max_epochs", "1"]
    assert run("fit", *config, "--model.width", "8", "--trainer.limit_train_batches", "2", "--out", str(tmp_path)) == 0
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["data"]["path"] in bundled_sets()
