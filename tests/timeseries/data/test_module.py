"""ForecastData from file to batches, through checkpoints, and back to a table."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
from jsonargparse import ArgumentParser

from scanweave.core.errors import ConfigError, DataError
from scanweave.timeseries.data import ForecastData, ForecastSpec, sample_frame, write_sample

from .last_value import Last, trainer
from .tables import frame, write


def data_from(table: pd.DataFrame, stage: str | None = "fit", **options) -> ForecastData:
    data = ForecastData.from_frame(table, **{"lookback": 12, "horizon": 6, "features": "M", **options})
    if stage is not None:
        data.setup(stage)
    return data


@pytest.mark.parametrize(
    ("options", "targets", "covariates"),
    [
        ({"features": "S", "target": "b"}, ("b",), ()),
        ({"features": "S", "target": ["c", "a"]}, ("c", "a"), ()),
        ({"features": "MS", "target": "b"}, ("b",), ("a", "c", "d")),
        ({"features": "MS", "target": "b", "known": ["d"]}, ("b",), ("a", "c")),
        ({"features": "M"}, ("a", "b", "c", "d"), ()),
        ({"features": "M", "target": "b", "known": ["d"]}, ("a", "b", "c"), ()),
    ],
)
def test_features_give_columns_their_parts(options, targets, covariates):
    data = data_from(frame(120, 4), **options)
    known = tuple(options.get("known", ()))
    assert data.spec == ForecastSpec(
        12, 6, len(targets), len(covariates), len(known), marks=4, freq="h", period=24, target_names=targets
    )
    batch = next(iter(data.train_dataloader()))
    assert {name: tuple(value.shape) for name, value in batch.items()} == {
        "past": (32, 12, len(targets)),
        "future": (32, 6, len(targets)),
        "marks": (32, 18, 4),
        "covariates": (32, 12, len(covariates)),
        "known": (32, 18, len(known)),
        "series": (32,),
        "start": (32,),
    }
    table = frame(120, 4)
    scaled = ((table - table[:72].mean()) / table[:72].std(ddof=0)).to_numpy()
    start = int(batch["start"][5])
    for part, names, rows in (("past", targets, 12), ("covariates", covariates, 12), ("known", known, 18)):
        for i, name in enumerate(names):
            np.testing.assert_allclose(
                batch[part][5, :, i], scaled[start : start + rows, "abcd".index(name)], atol=1e-5
            )


def test_evaluation_sees_every_window_once():
    data = data_from(frame(200), batch_size=32)
    for part, loader in (("val", data.val_dataloader()), ("test", data.test_dataloader())):
        starts = torch.cat([batch["start"] for batch in loader])
        first, count = data.split.windows(part)
        assert starts.tolist() == list(range(int(first[0]), int(first[0] + count[0])))
        assert len(starts) % 32


def test_training_order_depends_on_seed_and_epoch():
    def starts(data: ForecastData, epoch: int) -> list[int]:
        loader = data.train_dataloader()
        loader.batch_sampler.set_epoch(epoch)
        return torch.cat([batch["start"] for batch in loader]).tolist()

    one, same, other = data_from(frame(300)), data_from(frame(300)), data_from(frame(300), seed=1)
    assert starts(one, 0) == starts(same, 0)
    assert starts(one, 0) != starts(one, 1)
    assert starts(one, 0) != starts(other, 0)
    assert starts(data_from(frame(300), shuffle=False), 0) == list(range(5 * 32))


def test_fit_test_and_predict_through_a_checkpoint(tmp_path):
    table = sample_frame(24 * 30)[["date", "load", "temperature"]]
    path = tmp_path / "load.csv"
    table.to_csv(path, index=False)
    options = {"target": "load", "features": "MS", "lookback": 12, "horizon": 6}
    data = ForecastData(str(path), **options)
    runner = trainer(tmp_path)
    runner.fit(Last(), data)
    runner.save_checkpoint(tmp_path / "last.ckpt")
    predicted = runner.predict(Last(), data, ckpt_path=tmp_path / "last.ckpt", weights_only=True)

    # Another file: other values, more columns, another order of columns; the training data is gone.
    path.unlink()
    other = pd.DataFrame(
        {"extra": 1.5, "temperature": table["temperature"], "date": table["date"], "load": table["load"] * 10}
    )
    other.iloc[-40:].to_csv(tmp_path / "new.csv", index=False)
    again = ForecastData(str(tmp_path / "new.csv"), **options)
    model = Last()
    result = trainer(tmp_path).predict(model, again, ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    np.testing.assert_array_equal(again.scaler.mean, data.scaler.mean)
    assert again.spec == data.spec
    assert again.series.columns.covariates == ("temperature",)
    last = float(table["load"].iloc[-1])
    step = float(model.offset.detach() * data.scaler.std[0, 0])
    np.testing.assert_allclose(data.forecast_frame(torch.cat(predicted))["load"], last + step, rtol=1e-5)
    np.testing.assert_allclose(again.forecast_frame(torch.cat(result))["load"], 10 * last + step, rtol=1e-5)


def test_test_takes_the_checkpoints_scaler(tmp_path):
    data = data_from(frame(200, 2), stage=None)
    runner = trainer(tmp_path)
    runner.fit(Last(), data)
    runner.save_checkpoint(tmp_path / "last.ckpt")
    other, model = data_from(frame(200, 2) * 5, stage=None), Last()
    trainer(tmp_path).test(model, other, ckpt_path=tmp_path / "last.ckpt", weights_only=True, verbose=False)
    np.testing.assert_array_equal(other.scaler.std, data.scaler.std)
    assert len(torch.cat(model.tested)) == len(other.dataset("test"))


def test_a_run_without_validation_rows(tmp_path):
    data = data_from(frame(200), stage=None, ratios=(1.0, 0.0, 0.0))
    runner = trainer(tmp_path)
    runner.fit(Last(), data)
    assert runner.global_step == (200 - 18 + 1) // 32


def test_the_state_is_plain_and_says_what_differs():
    data = data_from(frame(200, 2))
    state = json.loads(json.dumps(data.state_dict()))
    other = data_from(frame(200, 2) + 4, stage=None)
    other.load_state_dict(state)
    other.setup("test")
    np.testing.assert_array_equal(other.scaler.mean, data.scaler.mean)
    assert ForecastSpec.from_dict(state["spec"]) == data.spec == other.spec
    with pytest.raises(ConfigError, match=r"--data.horizon is 5, but the model was trained with 6"):
        data_from(frame(200, 2), stage=None, horizon=5).load_state_dict(state)
    lacking = data_from(frame(200, 1), stage=None)
    lacking.load_state_dict(state)
    with pytest.raises(DataError, match=r"no column 'b'.*trained with this column"):
        lacking.setup("test")


def test_a_short_file_takes_its_step_from_the_model():
    data = data_from(frame(200, freq="MS"))
    other = data_from(frame(12, freq="MS").iloc[::-1], stage=None, sort=True)
    other.load_state_dict(data.state_dict())
    other.setup("predict")
    assert other.spec == data.spec


def test_predict_alone_is_not_kept_for_fit():
    data = data_from(frame(200), stage="predict")
    everything = data.scaler.mean.item()
    data.setup("fit")
    assert data.scaler.mean.item() != everything
    assert data.scaler.mean.item() == frame(200)["a"][:120].to_numpy().mean()


def test_series_scaled_alone_keep_their_statistics():
    tables = {name: frame(120, seed=i) * (i + 1) for i, name in enumerate(["x", "y", "z"])}
    known = pd.concat([table.assign(id=name) for name, table in tables.items() if name != "z"])
    data = data_from(known, id="id", scale="series")
    state = data.state_dict()
    swapped = pd.concat([tables[name].assign(id=name) for name in ("z", "y", "x")])
    other = data_from(swapped, stage=None, id="id", scale="series")
    other.load_state_dict(state)
    other.setup("predict")
    predicted = other.predict_dataset().gather([0, 1, 2])["past"]
    frame_ = other.forecast_frame(predicted[:, -1:].expand(3, 6, 1))
    for name in "xyz":
        np.testing.assert_allclose(frame_[frame_["id"] == name]["a"], tables[name]["a"].iloc[-1], rtol=1e-6)
    np.testing.assert_array_equal(other.scaler.mean[:2], data.scaler.mean)
    np.testing.assert_allclose(other.scaler.mean[2], tables["z"]["a"].mean())


def test_predict_goes_on_where_each_series_ends():
    table = pd.concat(
        [frame(n, tz="Europe/Berlin").assign(id=name) for name, n in {"x": 100, "tiny": 5, "y": 80}.items()]
    )
    data = data_from(table, id="id", stage="predict")
    (batch,) = data.predict_dataloader()
    assert "future" not in batch
    assert (batch["series"].tolist(), batch["start"].tolist()) == ([0, 2], [88, 68])
    assert batch["marks"].shape == (2, 18, 4)
    forecasts = data.forecast_frame(batch["past"][:, -6:])
    assert list(forecasts.columns) == ["id", "date", "a"]
    x = forecasts[forecasts["id"] == "x"]
    expected = pd.date_range(frame(100, tz="Europe/Berlin").index[-1], periods=7, freq="h", name="date")[1:]
    assert pd.DatetimeIndex(x["date"]).equals(expected.as_unit("us"))
    np.testing.assert_allclose(x["a"], frame(100)["a"][-6:], rtol=1e-6)
    assert forecasts["id"].unique().tolist() == ["x", "y"]
    np.testing.assert_array_equal(
        batch["marks"][0, 12:], data.series.calendar.marks(data.series.calendar.integers(expected))
    )


def test_predict_needs_a_lookback():
    data = data_from(frame(11), stage="predict")
    with pytest.raises(DataError, match=r"found 11 rows at most, expected 12 \(lookback\)"):
        data.predict_dataset()


def test_known_columns_of_future_rows(tmp_path):
    lines = ["date,load,price"]
    for i, time in enumerate(pd.date_range("2024-01-01", periods=106, freq="h")):
        lines.append(f"{time},{i if i < 100 else ''},{i % 5}")
    options = {"target": "load", "known": ["price"], "lookback": 12, "horizon": 6}
    data = ForecastData(str(write(tmp_path, lines)), **options)
    data.setup("fit")
    assert data.split.edges.tolist() == [[0, 60, 80, 100]]
    np.testing.assert_array_equal(data.scaler.mean[0], [np.arange(60).mean(), (np.arange(60) % 5).mean()])
    batch = data.predict_dataset().gather([0])
    price = batch["known"][0, :, 0].numpy() * data.scaler.std[0, 1] + data.scaler.mean[0, 1]
    np.testing.assert_allclose(price, np.arange(88, 106) % 5, atol=1e-6)
    assert batch["start"].item() == 88
    short = ForecastData(str(write(tmp_path, lines[:-2])), **options)
    short.setup("predict")
    with pytest.raises(DataError, match=r"the series has 4 rows after its last target, expected 6 \(horizon\)"):
        short.predict_dataset()
    with pytest.raises(DataError, match=r"row 102 .*column 'load': found no value"):
        ForecastData(str(write(tmp_path, lines)), target="load", features="MS").setup("fit")


def test_forecast_frames_with_quantiles():
    data = data_from(frame(200, 2))
    dataset = data.dataset("test")
    batch = dataset.gather([0, 4])
    predictions = batch["future"][..., None] + torch.tensor([-1.0, 0.0, 1.0])
    table = data.forecast_frame(predictions, batch["series"], batch["start"], quantiles=(0.1, 0.5, 0.9))
    assert list(table.columns) == ["date", "a_q0.1", "a", "a_q0.5", "a_q0.9", "b_q0.1", "b", "b_q0.5", "b_q0.9"]
    truth = frame(200, 2).loc[table["date"].iloc[:6]]
    np.testing.assert_allclose(table["b"].iloc[:6], truth["b"], rtol=1e-6)
    np.testing.assert_allclose(table["b_q0.9"].iloc[:6] - truth["b"].to_numpy(), data.scaler.std[0, 1], rtol=1e-5)
    with pytest.raises(ValueError, match=r"shape \(2, 6, 2\), expected \(2, horizon, 2, 1\)"):
        data.forecast_frame(batch["future"], batch["series"], batch["start"], quantiles=(0.5,))
    with pytest.raises(ValueError, match="belong together"):
        data.forecast_frame(batch["future"], batch["series"])


def test_rolling_origins_end_with_the_data():
    table = pd.concat([frame(n).assign(id=name) for name, n in {"x": 200, "y": 150}.items()])
    data = data_from(table, id="id")
    folds = data.backtest_windows(folds=6)
    assert len(folds) == 6
    starts = [dict(zip(batch["series"].tolist(), batch["start"].tolist(), strict=True)) for batch in
              (fold.gather(range(len(fold))) for fold in folds)]  # fmt: skip
    # y's test part of 30 rows holds five folds of 6 rows, x's of 40 rows six.
    assert starts == [{0: 152}, *({0: 200 - 18 - back, 1: 150 - 18 - back} for back in (24, 18, 12, 6, 0))]
    assert all(min(start + 12 for start in fold.values()) >= 120 for fold in starts)
    assert [len(fold) for fold in data.backtest_windows(folds=3, stride=1)] == [2, 2, 2]
    with pytest.raises(ConfigError, match=r"9 folds 6 rows apart reach back before the test part; at most 6 folds fit"):
        data.backtest_windows(folds=9)


def test_masks_come_with_missing_values_allowed():
    table = frame(200)
    table.iloc[[30, 170], 0] = np.nan
    data = data_from(table, fill="mask")
    batch = next(iter(data.test_dataloader()))
    assert not batch["future_mask"].all()
    assert batch["past"].isfinite().all()
    assert "past_mask" in data.predict_dataset().gather([0])
    assert "past_mask" not in data_from(frame(200)).dataset("test").gather([0])


def test_too_short_for_the_stage():
    with pytest.raises(DataError, match=r"the series has 25 rows, too few for one train window.* 30 rows would do"):
        data_from(frame(25))
    with pytest.raises(ConfigError, match="must be at least 1"):
        data_from(frame(25), horizon=0)


def test_a_given_period_goes_before_the_steps():
    assert data_from(frame(200), period=12).spec.period == 12


def test_the_command_line_documents_every_option():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(ForecastData, "data")
    arguments = ["--data.path=x.csv", "--data.target=[a, b]", "--data.ratios=[0.7, 0.1, 0.2]", "--data.fill=mask"]
    config = parser.parse_args(arguments)
    assert config.data.target == ["a", "b"]
    assert parser.parse_args(["--data.path=x.csv", "--data.target=OT"]).data.target == "OT"
    undocumented = [action.dest for action in parser._actions if action.dest.startswith("data.") and not action.help]
    assert undocumented == []
    assert ForecastData(**config.data.as_dict()).ratios == (0.7, 0.1, 0.2)


def test_the_sample_is_realistic_and_the_same_each_time(tmp_path):
    path = write_sample(tmp_path / "new" / "sample.csv", hours=24 * 120)
    table = pd.read_csv(path, parse_dates=["date"])
    pd.testing.assert_frame_equal(table, sample_frame(24 * 120), check_dtype=False)
    assert not table["load"].equals(sample_frame(24 * 120, seed=1)["load"])
    data = ForecastData(str(path), target="load", features="MS", known=["holiday"], lookback=168, horizon=24)
    data.setup("fit")
    assert (data.spec.freq, data.spec.covariates, data.spec.known) == ("h", 1, 1)
    load = table["load"].to_numpy()
    centred = load - load.mean()

    def correlation(lag: int) -> float:
        return float(np.corrcoef(centred[lag:], centred[:-lag])[0, 1])

    assert load.min() > 0
    assert correlation(168) > correlation(24) > 0.5 > correlation(12)
    assert correlation(168) < 0.99
    assert [item.name for item in path.parent.iterdir()] == ["sample.csv"]


def test_etth1(data_path):
    data = ForecastData(str(data_path("ett/ETTh1.csv")), target="OT", lookback=168, horizon=336)
    data.setup("fit")
    assert (len(data.dataset("train")), len(data.dataset("val")), len(data.dataset("test"))) == (9949, 3149, 3149)
    assert data.spec == ForecastSpec(168, 336, marks=4, target_names=("OT",))
    batch = data.dataset("test").gather(range(3149))
    mean = batch["past"].mean(1, keepdim=True)
    # The window mean's published error on this protocol.
    assert abs(float((batch["future"] - mean).square().mean()) - 0.1269) < 5e-5
