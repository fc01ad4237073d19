"""Train TSM2 and forecasters of several mixers on ETTh1 beside DLinear and PatchTST, and print the table of errors.

The usual protocol: all seven columns forecast together (features M), 12, 4 and 4 months, lookback 96, every window of
the test part counted. All are trained for the same epochs with the same batches, optimiser and schedule; DLinear at its
authors' learning rate, the scan forecasters at three times TSM2's (chosen on the validation part). An epoch's seconds
are a run's, reading and testing included, over its epochs.

Run from the repository: ``python -m tests.benchmarks.mixer_table --data FOLDER --out FOLDER --processes 2``.
Each finished run is a JSON file in the output folder; a run that has one is not done again.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .forecast_runs import do_all, results

HORIZONS = (96, 336)
MIXERS = ("mamba", "gla", "slstm", "s4d")
EPOCHS, PATIENCE = 5, 2


@dataclass(frozen=True)
class Run:
    """One model on one horizon and seed; ``Scan`` models name their mixer."""

    model: str
    horizon: int
    seed: int

    @property
    def name(self) -> str:
        return f"ETTh1-{self.horizon}-{self.model}-{self.seed}"

    def record(self) -> dict[str, Any]:
        return asdict(self)

    def make(self, data: Path) -> tuple[Any, Any]:
        from scanweave.timeseries import models
        from scanweave.timeseries.data import ForecastData

        kind, _, mixer = self.model.partition("-")
        lr = {"DLinear": 5e-3, "Scan": 3e-3}.get(kind, 1e-3)
        training = {"schedule": "exponential", "lr_decay": 0.7, "lr": lr}
        sizes: dict[str, Any] = {
            "DLinear": {},
            "PatchTST": {},
            "TSM2": {"patch": 16, "dropout": 0.2},
            "Scan": {"patch": 16, "dropout": 0.2, "future_marks": False, "mixer": mixer},
        }[kind]
        module = ForecastData(
            str(data / "ETTh1.csv"),
            target="OT",
            features="M",
            lookback=96,
            horizon=self.horizon,
            split="ett",
            batch_size=64,
            seed=self.seed,
        )
        return getattr(models, kind)(**sizes, **training), module


def table(out: Path, models: list[str]) -> str:
    """Return the finished runs as a markdown table."""
    lines = [
        "| ETTh1, lookback 96 | horizon | MSE | spread | MAE | spread | seeds | parameters | seconds an epoch |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    done = results(out)
    for horizon in HORIZONS:
        for model in models:
            found = [r for r in done if (r["horizon"], r["model"]) == (horizon, model)]
            if not found:
                continue
            cells = [model, str(horizon)]
            for key in ("test/mse", "test/mae"):
                errors = [r[key] for r in found]
                cells += [f"{statistics.mean(errors):.4f}", f"{min(errors):.4f} to {max(errors):.4f}"]
            seconds = statistics.mean(r["seconds"] / r["epochs"] for r in found)
            cells += [str(len(found)), str(found[0]["parameters"]), f"{seconds:.1f}"]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Do the runs that are not done, and print the table of all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with ETTh1.csv")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--horizons", nargs="+", type=int, default=list(HORIZONS), choices=HORIZONS)
    parser.add_argument("--mixers", nargs="+", default=list(MIXERS), help="mixers of the scan forecaster")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=1)
    args = parser.parse_args()
    models = ["TSM2", *(f"Scan-{mixer}" for mixer in args.mixers), "DLinear", "PatchTST"]
    wanted = [Run(model, horizon, seed) for seed in range(args.seeds) for horizon in args.horizons for model in models]
    do_all(wanted, args.data, args.out, args.processes, EPOCHS, PATIENCE)
    print(table(args.out, models))


if __name__ == "__main__":
    main()
