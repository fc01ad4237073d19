"""``scanweave forecast``: the task, its verb ``backtest``, and the demo."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from ..core.errors import ConfigError
from ..core.plots import BLUE, MUTED, new_figure, save_figure, set_title
from ..core.run import RunFolder
from ..core.spec import Session, TaskSpec, Verb
from ..core.storage import atomic_file
from .data.module import ForecastData
from .data.sample import write_sample
from .figures import draw_forecasts
from .models import UntrainedTask
from .task import ForecastTask

DEMO_COMMON = ["--data.target", "load", "--data.known", "[holiday]", "--data.lookback", "168", "--data.horizon", "48",
               "--trainer.enable_model_summary", "false"]  # fmt: skip
DEMO_RUNS = {
    "TPGN": ["--model", "TPGN", "--model.hidden_size", "8", "--model.quantiles", "[0.1,0.5,0.9]",
             "--model.future_marks", "true", "--model.lr", "3e-3", "--trainer.max_epochs", "5"],
    "SeasonalNaive": ["--model", "SeasonalNaive", "--model.period", "168"],
}  # fmt: skip


def backtest(session: Session, folds: int = 5, stride: int | None = None) -> None:
    """Forecast from several past origins with one checkpoint, and compare with what came.

    Writes ``backtest.csv`` (errors of each fold) and pictures. The network is trained once: choose folds inside the
    test part, which it has not seen.

    Args:
        session: The configured run.
        folds: Number of origins.
        stride: Rows between two origins; by default the horizon.
    """
    task, data = session.model, session.data
    if not isinstance(task, ForecastTask) or not isinstance(data, ForecastData):
        raise ConfigError(f"backtest is for forecasting tasks, found {type(task).__name__} and {type(data).__name__}")
    if session.ckpt_path is None and not isinstance(task, UntrainedTask):
        raise ConfigError(
            f"backtest needs a trained {type(task).__name__}: pass --out RUN --ckpt_path best, or a checkpoint's path"
        )
    data.setup("test")
    if session.ckpt_path is None:
        task.set_context({"spec": data.spec.to_dict()})
    loaders = [data.loader(windows) for windows in data.backtest_windows(folds, stride)]
    outputs = session.trainer.predict(task, loaders, ckpt_path=session.ckpt_path) or []
    per_fold = outputs if len(loaders) > 1 else [outputs]
    joined = [{name: torch.cat([batch[name] for batch in fold]) for name in fold[0]} for fold in per_fold]
    table = pd.DataFrame([_errors(task, data, fold) for fold in joined])
    table.insert(0, "fold", np.arange(1, len(table) + 1))
    path = session.run.path / "backtest.csv"
    with atomic_file(path, "w") as file:
        table.to_csv(file, index=False)
    session.run.write_metrics(
        {f"backtest/{name}": table[name].mean() for name in table if name not in ("fold", "from")}
    )
    draw_forecasts(data, joined, task.quantiles, session.run.figures / "backtest")
    _draw_folds(table, session.run.figures / "backtest" / "folds.png")
    print(table.to_string(index=False, float_format=lambda value: f"{value:.4g}"))
    print(f"written: {path}")


def _errors(task: ForecastTask, data: ForecastData, fold: dict[str, torch.Tensor]) -> dict[str, object]:
    """Return a fold's first forecast time and its errors, scaled and in original units."""
    mask = fold.get("future_mask")
    mask = torch.ones_like(fold["future"], dtype=torch.bool) if mask is None else mask
    point, truth, series = task.point(fold["forecast"]), fold["future"], fold["series"].numpy()
    error = (point - truth)[mask]
    original = torch.from_numpy(data.frame.original(point, series) - data.frame.original(truth, series))[mask]
    row = int(data.series.bounds[series[0]]) + int(fold["start"][0]) + data.lookback
    errors: dict[str, object] = {
        "from": data.series.calendar.index(data.series.times[row : row + 1])[0],
        "mse": error.square().mean().item(),
        "mae": error.abs().mean().item(),
        "mae_original": original.abs().mean().item(),
    }
    if task.quantiles:
        low, high = fold["forecast"][..., 0], fold["forecast"][..., -1]
        errors["coverage"] = ((low <= truth) & (truth <= high))[mask].float().mean().item()
    return errors


def _draw_folds(table: pd.DataFrame, path: Path) -> Path:
    figure, (ax,) = new_figure(8.0, 3.6)
    labels = [str(origin)[:16] for origin in table["from"]]
    ax.bar(np.arange(len(table)), table["mae_original"], color=BLUE, width=0.6)
    ax.axhline(table["mae_original"].mean(), color=MUTED, linestyle=(0, (4, 3)), linewidth=1.0)
    ax.set_xticks(np.arange(len(table)), labels, rotation=20 if len(table) > 4 else 0)
    ax.set_xlabel("first step of the forecast")
    ax.set_ylabel("mean absolute error [original unit]")
    set_title(ax, f"Rolling origin: mean {table['mae_original'].mean():.4g}")
    return save_figure(figure, path)


def demo(out: str | None = None, hours: int = 17520) -> int:
    """Fit a small TPGN on a made-up hourly load, beside the seasonal naive rule, and forecast the next two days.

    Args:
        out: Folder of the data and the two runs; by default ``runs/demo/<time>``.
        hours: Length of the series.

    Returns:
        The exit code.
    """
    from ..core.cli import main

    folder = RunFolder.choose("demo", out).path
    path = write_sample(folder / "load.csv", hours, future=48)
    print(f"data: {path}, {hours} hours of a small town's electric load")
    errors = {}
    for name, options in DEMO_RUNS.items():
        run = folder / name.lower()
        command = ["forecast", "fit", "--data.path", str(path), *DEMO_COMMON, *options, "--out", str(run)]
        print(f"\n$ scanweave {shlex.join(command)}", flush=True)
        if code := main(command, {"forecast": FORECAST}):
            return code
        errors[name] = json.loads((run / "metrics.json").read_text())["test/mae_original"]
    command = ["forecast", "predict", "--out", str(folder / "tpgn"), "--ckpt_path", "best"]
    print(f"\n$ scanweave {shlex.join(command)}", flush=True)
    if code := main(command, {"forecast": FORECAST}):
        return code
    print("\nmean absolute error over the test part, 48 hours ahead:")
    for name, error in errors.items():
        print(f"  {name:<14} {error:6.3f} MW")
    print(f"pictures: {folder}/tpgn/figures")
    return 0


def forecasters() -> list[str]:
    """Return the names that ``scanweave forecast fit --model`` takes."""
    from . import models

    found = vars(models).values()
    return [
        task.__name__
        for task in found
        if isinstance(task, type) and issubclass(task, ForecastTask) and task not in (ForecastTask, UntrainedTask)
    ]


FORECAST = TaskSpec(
    name="forecast",
    help="Forecast series from a CSV file.",
    module_class=ForecastTask,
    data_class=ForecastData,
    verbs={"backtest": Verb(backtest, "measure a checkpoint from several past origins", configured=True)},
    trainer_defaults={"max_epochs": 25},
)
