"""Train TPGN and its controls on ETTh1 and ETTh2, and print the table of errors beside the paper's.

Run from the repository: ``python -m tests.benchmarks.forecast_table --data FOLDER --out FOLDER --processes 2``.
Each finished run is a JSON file in the output folder; a run that has one is not done again.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .forecast_runs import do_all, results

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

    def record(self) -> dict[str, Any]:
        return asdict(self)

    def make(self, data: Path) -> tuple[Any, Any]:
        from scanweave.timeseries import models
        from scanweave.timeseries.data import ForecastData

        path = str(data / f"{self.dataset}.csv")
        module = ForecastData(path, target="OT", lookback=168, horizon=self.horizon, seed=self.seed)
        return getattr(models, self.model)(**self.options), module


def runs(datasets: list[str], horizons: list[int], models: list[str], seeds: int) -> list[Run]:
    """Return all runs asked for; rules have one seed, as nothing in them is random."""
    return [
        Run(dataset, horizon, model, seed)
        for dataset in datasets
        for horizon in horizons
        for model in models
        for seed in range(1 if model in RULES else seeds)
    ]


def table(out: Path) -> str:
    """Return the finished runs as a markdown table."""
    done = results(out)
    lines = [
        "| data, horizon | model | MSE | spread | MAE | seeds | paper's TPGN MSE, MAE |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for (dataset, horizon), paper in PAPER.items():
        for model in (*TRAINED, *RULES):
            found = [r for r in done if (r["dataset"], r["horizon"], r["model"]) == (dataset, horizon, model)]
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
    wanted = runs(args.datasets, args.horizons, args.models, args.seeds)
    do_all(wanted, args.data, args.out, args.processes, max_epochs=25, patience=5)
    print(table(args.out))


if __name__ == "__main__":
    main()
