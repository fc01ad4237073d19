"""The forecasting task under the Trainer and the command line: metrics, calibration, checkpoints, units."""

from __future__ import annotations

import json
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import pytest
import torch

from scanweave.core import ConfigError
from scanweave.core.cli import main
from scanweave.core.resume import RunCheckpoint
from scanweave.core.storage import read_checkpoint
from scanweave.timeseries import models
from scanweave.timeseries.cli import FORECAST, forecasters
from scanweave.timeseries.data import ForecastData, sample_frame, write_sample
from scanweave.timeseries.models import TPGN, DLinear, LastValue, SeasonalNaive

SIZES = {"target": "load", "lookback": 48, "horizon": 12}


def run(arguments: list[str]) -> int:
    return main(["forecast", *arguments], {"forecast": FORECAST})


def make_data(hours: int = 500, **options) -> ForecastData:
    return ForecastData.from_frame(sample_frame(hours), **{**SIZES, "time": "date", **options})


def make_trainer(folder: Path, epochs: int = 1, **options) -> pl.Trainer:
    return pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[RunCheckpoint(folder)],
        use_distributed_sampler=False,
        default_root_dir=folder,
        **options,
    )


def all_windows(task, data: ForecastData) -> tuple[torch.Tensor, torch.Tensor]:
    """Forecasts and truths of all test windows, one at a time."""
    windows = data.dataset("test")
    batches = [windows.gather([i]) for i in range(len(windows))]
    with torch.no_grad():
        return torch.cat([task.forecast(b) for b in batches]), torch.cat([b["future"] for b in batches])


@pytest.mark.parametrize("batch_size", [7, 64])
def test_metrics_are_over_all_windows_by_samples(tmp_path: Path, batch_size: int) -> None:
    data, task = make_data(batch_size=batch_size), TPGN(lr=1e-2)
    trainer = make_trainer(tmp_path)
    trainer.fit(task, data)
    metrics = trainer.test(task, data, verbose=False)[0]
    forecast, truth = all_windows(task, data)
    assert len(forecast) % batch_size != 0
    assert metrics["test/mse"] == pytest.approx((forecast - truth).square().mean().item(), rel=1e-5)
    assert metrics["test/mae"] == pytest.approx((forecast - truth).abs().mean().item(), rel=1e-5)
    assert metrics["test/loss"] == pytest.approx(metrics["test/mse"], rel=1e-5)
    unit = float(data.scaler.std[0, 0])
    assert metrics["test/mae_original"] == pytest.approx(metrics["test/mae"] * unit, rel=1e-5)


def test_missing_values_count_nowhere(tmp_path: Path) -> None:
    frame = sample_frame(500)
    hidden = np.random.default_rng(0).random(500) < 0.2
    frame.loc[hidden, "load"] = np.nan
    data = ForecastData.from_frame(frame, **SIZES, time="date", fill="mask")
    task = DLinear(lr=1e-2, quantiles=[0.1, 0.5, 0.9])
    trainer = make_trainer(tmp_path)
    trainer.fit(task, data)
    metrics = trainer.test(task, data, verbose=False)[0]
    windows = data.dataset("test").gather(range(len(data.dataset("test"))))
    with torch.no_grad():
        forecast = task.forecast(windows)
    error = (forecast[..., 1] - windows["future"])[windows["future_mask"]]
    assert metrics["test/mae"] == pytest.approx(error.abs().mean().item(), rel=1e-5)
    inside = (forecast[..., 0] <= windows["future"]) & (windows["future"] <= forecast[..., 2])
    assert metrics["test/coverage"] == pytest.approx(inside[windows["future_mask"]].float().mean().item(), rel=1e-5)


@pytest.mark.parametrize(("ema", "epochs"), [(0.0, 1), (0.0, 2), (0.9, 2)])
def test_checkpoints_hold_the_shifts_of_their_own_weights(tmp_path: Path, ema: float, epochs: int) -> None:
    data = make_data()
    task = TPGN(lr=1e-2, quantiles=[0.1, 0.5, 0.9], ema=ema)
    trainer = make_trainer(tmp_path, epochs)
    trainer.fit(task, data)
    trainer.test(task, data, ckpt_path=trainer.checkpoint_callback.best_model_path, verbose=False)
    validation = data.dataset("val").gather(range(len(data.dataset("val"))))
    shift = task.offsets.shift.clone()
    with torch.no_grad():
        residuals = validation["future"].unsqueeze(-1) - task.model(validation)
    task.offsets.calibrate(residuals)
    assert shift.abs().max() > 0
    torch.testing.assert_close(shift, task.offsets.shift, rtol=0, atol=1e-5)


def test_loads_from_a_checkpoint_alone(tmp_path: Path) -> None:
    data, task = make_data(), TPGN(hidden_size=3, quantiles=[0.2, 0.8])
    trainer = make_trainer(tmp_path)
    trainer.fit(task, data)
    loaded = TPGN.load_from_checkpoint(trainer.checkpoint_callback.last_path, weights_only=True)
    batch = data.dataset("test").gather([0, 5])
    assert loaded.spec == data.spec
    assert torch.equal(loaded.forecast(batch), task.forecast(batch))


def test_calibration_can_be_left_out(tmp_path: Path) -> None:
    task = LastValue(quantiles=[0.1, 0.9], calibrate=False)
    make_trainer(tmp_path).fit(task, make_data())
    assert (task.offsets.shift == 0).all()


def test_rules_need_no_training_and_stop_after_one_pass(tmp_path: Path) -> None:
    data, task = make_data(), SeasonalNaive(period=24, quantiles=[0.05, 0.5, 0.95])
    trainer = make_trainer(tmp_path, epochs=9)
    trainer.fit(task, data)
    assert trainer.current_epoch == 1
    metrics = trainer.test(task, data, ckpt_path=trainer.checkpoint_callback.best_model_path, verbose=False)[0]
    values = data.series.targets[:, 0]
    windows = data.dataset("test")
    _, start, _ = windows.locate(range(len(windows)))
    errors = [np.abs(values[s + 48 : s + 60] - values[s + 24 : s + 36]).mean() for s in start]
    assert metrics["test/mae_original"] == pytest.approx(np.mean(errors), rel=1e-5)
    assert metrics["test/coverage"] > 0.5


def test_small_networks_train_on_one_thread_and_give_the_others_back(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    seen, before = [], torch.get_num_threads()

    class Watched(TPGN):
        def on_train_start(self) -> None:
            seen.append(torch.get_num_threads())

    torch.set_num_threads(2)
    try:
        make_trainer(tmp_path).fit(Watched(), make_data(300))
        assert seen == [1]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_quantiles_choose_their_loss_and_refuse_another() -> None:
    assert TPGN(quantiles=[0.5]).loss == "pinball"
    assert TPGN().loss == "mse"
    with pytest.raises(ConfigError, match="trained by loss=pinball"):
        TPGN(quantiles=[0.5], loss="mae").configure_losses()


def test_a_bad_batch_is_named_by_series_and_row() -> None:
    batch = {"series": torch.tensor([0, 3]), "start": torch.tensor([17, 4])}
    assert TPGN().describe_batch(batch) == "windows (series, first row) (0, 17), (3, 4)"


def test_command_line_fits_predicts_and_backtests(tmp_path: Path, capsys) -> None:
    path, out = write_sample(tmp_path / "load.csv", 600), tmp_path / "run"
    fit = ["fit", "--model", "TPGN", "--model.quantiles", "[0.1,0.5,0.9]", "--data.path", str(path)]
    fit += ["--data.target", "load", "--data.lookback", "48", "--data.horizon", "12", "--data.known", "[holiday]"]
    assert run([*fit, "--trainer.max_epochs", "1", "--out", str(out)]) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert {"test/mse", "test/mae", "test/mae_original", "test/coverage"} <= set(metrics)
    assert sorted(p.name for p in (out / "figures").iterdir()) == [
        *(f"forecast_{i}.png" for i in range(4)),
        "training.png",
    ]
    assert read_checkpoint(str(out / "checkpoints" / "best.ckpt"))["context"]["spec"]["target_names"] == ["load"]

    frame = pd.read_csv(path)
    later = pd.DataFrame({"date": pd.date_range("2022-01-26", periods=12, freq="h").astype(str), "holiday": 0})
    pd.concat((frame[-100:], later)).to_csv(tmp_path / "other.csv", index=False)
    path.unlink()  # the checkpoint alone knows the training data's scale
    predict = ["predict", "--out", str(out), "--ckpt_path", "best", "--data.path", str(tmp_path / "other.csv")]
    assert run(predict) == 0
    table = pd.read_csv(out / "predictions.csv")
    assert table["date"].iloc[[0, -1]].tolist() == ["2022-01-26 00:00:00", "2022-01-26 11:00:00"]
    assert (table["load_q0.1"] <= table["load"]).all()
    assert (table["load"] <= table["load_q0.9"]).all()
    assert table["load"].between(20, 120).all()
    assert (out / "figures" / "prediction_0.png").stat().st_size > 10_000

    write_sample(path, 600)
    backtest = ["backtest", "--out", str(out), "--ckpt_path", "best", "--folds", "3", "--stride", "12"]
    assert run(backtest) == 0
    folds = pd.read_csv(out / "backtest.csv")
    assert folds["from"].tolist() == ["2022-01-24 12:00:00", "2022-01-25 00:00:00", "2022-01-25 12:00:00"]
    assert {"mse", "mae", "mae_original", "coverage"} <= set(folds)
    assert (out / "figures" / "backtest" / "folds.png").exists()


def test_backtest_of_a_rule_needs_no_checkpoint_and_of_a_network_does(tmp_path: Path, capsys) -> None:
    path = write_sample(tmp_path / "load.csv", 600)
    common = ["--data.path", str(path), "--data.target", "load", "--data.lookback", "48", "--data.horizon", "24"]
    assert run(["backtest", "--model", "SeasonalNaive", *common, "--folds", "2", "--out", str(tmp_path / "a")]) == 0
    folds = pd.read_csv(tmp_path / "a" / "backtest.csv")
    values = pd.read_csv(path)["load"].to_numpy()
    naive = [np.abs(values[i : i + 24] - values[i - 24 : i]).mean() for i in (552, 576)]
    np.testing.assert_allclose(folds["mae_original"], naive, rtol=1e-5)
    assert run(["backtest", "--model", "TPGN", *common, "--out", str(tmp_path / "b")]) == 1
    assert "backtest needs a trained TPGN" in capsys.readouterr().err


def test_every_model_is_listed_with_plain_arguments() -> None:
    names = forecasters()
    trained = {"TPGN", "TSM2", "Scan", "PatchTST", "DLinear", "CalendarLinear"}
    assert trained | {"SeasonalNaive", "WindowMean", "LastValue"} == set(names)
    for name in names:
        data = make_data(300)
        data.setup("fit")
        task = getattr(models, name)()
        task.set_context({"spec": data.spec.to_dict()})
        task.build()
        batch = data.dataset("train").gather([0, 1])
        assert task.forecast(batch).shape == (2, 12, 1)


@pytest.mark.parametrize("name", ["tpgn_etth1", "tpgn_etth2", "scan_etth1", "dlinear_etth1", "tsm2_etth1"])
def test_packaged_configurations_run(tmp_path: Path, data_path, name: str) -> None:
    source = data_path(f"ett/{'ETTh2' if 'etth2' in name else 'ETTh1'}.csv")
    options = ["--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "2", "--trainer.max_epochs", "1"]
    config = ["--config", f"timeseries/{name}", "--data.path", str(source)]
    assert run(["fit", *config, *options, "--trainer.limit_test_batches", "2", "--out", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "metrics.json").read_text())["test/mse"] > 0


@pytest.mark.slow
def test_tpgn_reaches_the_paper_on_etth1(tmp_path: Path, data_path) -> None:
    config = ["--config", "timeseries/tpgn_etth1", "--data.path", str(data_path("ett/ETTh1.csv"))]
    assert run(["fit", *config, "--out", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "metrics.json").read_text())["test/mse"] < 0.109
