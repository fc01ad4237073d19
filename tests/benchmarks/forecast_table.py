"""Train TPGN and its controls on ETTh1 and ETTh2, and print the table of errors beside the paper's.

Run from the repository: ``python -m tests.benchmarks.forecast_table --data FOLDER --out FOLDER --processes 2``.
Each finished run is a JSON file in the output folder; a run that has one is not done again.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import statistics
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HORIZONS = (168, 336, 720, 1440)
TRAINED = ("TPGN", "DLinear", "CalendarLinear")
RULES = ("WindowMean", "LastValue")
# Jia et al. 2024, table of univariate forecasting, lookback 168: MSE, MAE.
PAPER = {
    ("ETTh1", 168): (0.1061, 0.2533),
    ("ETTh1", 336): (0.1110, 0.2625),
    ("ETTh1", 720): (0.1346, 0.2908),
    ("ETTh1", 1440): (0.1343, 0.2941),
    ("ETTh2", 168): (0.2174, 0.3623),
    ("ETTh2", 336): (0.2237, 0.3769),
    ("ETTh2", 720): (0.2356, 0.3898),
    ("ETTh2", 1440): (0.2514, 0.4070),
}


@dataclass(frozen=True)
class Run:
    """One model on one data set, horizon and seed."""

    dataset: str
    horizon: int
    model: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.dataset}-{self.horizon}-{self.model}-{self.seed}"

    @property
    def options(self) -> dict[str, Any]:
        """The paper's settings of TPGN; the controls have none."""
        if self.model != "TPGN":
            return {}
        if self.dataset == "ETTh2":
            return {"norm": False, "hidden_size": 8}
        return {"norm": True, "hidden_size": 8 if self.horizon == 1440 else 2}


def runs(datasets: list[str], horizons: list[int], models: list[str], seeds: int) -> list[Run]:
    """Return all runs asked for; rules have one seed, as nothing in them is random."""
    return [
        Run(dataset, horizon, model, seed)
        for dataset in datasets
        for horizon in horizons
        for model in models
        for seed in range(1 if model in RULES else seeds)
    ]


def do(run: Run, data: Path, out: Path) -> None:
    """Train, test the best epoch, and write the result."""
    os.environ["OMP_NUM_THREADS"] = "1"
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    import lightning.pytorch as pl
    import torch
    from lightning.pytorch.callbacks import EarlyStopping

    from scanweave.core.resume import RunCheckpoint
    from scanweave.timeseries import models
    from scanweave.timeseries.data import ForecastData

    torch.set_num_threads(1)
    pl.seed_everything(run.seed, verbose=False)
    begin = time.perf_counter()
    module = ForecastData(
        str(data / f"{run.dataset}.csv"), target="OT", lookback=168, horizon=run.horizon, seed=run.seed
    )
    task = getattr(models, run.model)(**run.options)
    trainer = pl.Trainer(
        max_epochs=25,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[EarlyStopping("val/loss", patience=5), RunCheckpoint(out / "checkpoints" / run.name)],
        use_distributed_sampler=False,
    )
    trainer.fit(task, module)
    best = trainer.checkpoint_callback.best_model_path
    metrics = trainer.test(task, module, ckpt_path=best, verbose=False)[0]
    result = {**asdict(run), **metrics, "epochs": trainer.current_epoch, "seconds": time.perf_counter() - begin}
    beside = out / f"{run.name}.json.part"
    beside.write_text(json.dumps(result, indent=2))
    os.replace(beside, out / f"{run.name}.json")
    print(
        f"{run.name}: MSE {metrics['test/mse']:.4f}, {result['epochs']} epochs, {result['seconds']:.0f} s", flush=True
    )


def table(out: Path) -> str:
    """Return the finished runs as a markdown table."""
    results = [json.loads(path.read_text()) for path in sorted(out.glob("*.json"))]
    lines = [
        "| data, horizon | model | MSE | spread | MAE | seeds | paper's TPGN MSE, MAE |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for (dataset, horizon), paper in PAPER.items():
        for model in (*TRAINED, *RULES):
            found = [r for r in results if (r["dataset"], r["horizon"], r["model"]) == (dataset, horizon, model)]
            if not found:
                continue
            mse, mae = ([r[f"test/{key}"] for r in found] for key in ("mse", "mae"))
            spread = f"{min(mse):.4f} to {max(mse):.4f}" if len(found) > 1 else ""
            reported = f"{paper[0]:.4f}, {paper[1]:.4f}" if model == "TPGN" else ""
            means = f"{statistics.mean(mse):.4f} | {spread} | {statistics.mean(mae):.4f}"
            lines.append(f"| {dataset}, {horizon} | {model} | {means} | {len(found)} | {reported} |")
    return "\n".join(lines)


def main() -> None:
    """Do the runs that are not done, and print the table of all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with ETTh1.csv and ETTh2.csv")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--datasets", nargs="+", default=["ETTh1", "ETTh2"])
    parser.add_argument("--horizons", nargs="+", type=int, default=list(HORIZONS))
    parser.add_argument("--models", nargs="+", default=[*TRAINED, *RULES], choices=[*TRAINED, *RULES])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=1)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    wanted = runs(args.datasets, args.horizons, args.models, args.seeds)
    left = [run for run in wanted if not (args.out / f"{run.name}.json").exists()]
    print(f"{len(wanted)} runs, {len(wanted) - len(left)} done before", flush=True)
    context = multiprocessing.get_context("spawn")
    with context.Pool(args.processes) as pool:
        pool.starmap(do, [(run, args.data, args.out) for run in left], chunksize=1)
    print(table(args.out))


if __name__ == "__main__":
    main()
