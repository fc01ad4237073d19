"""Fit ScanClassifier with several mixers, and sktime's ROCKET, on sets that come with sktime, and print the table.

Run from the repository: ``python -m tests.benchmarks.classifier_table --out FOLDER``. Nothing is fetched. Each finished
run is a JSON file in the output folder; a run that has one is not done again. ROCKET needs the extra ``bench``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

SETS = ("GunPoint", "ItalyPowerDemand", "JapaneseVowels", "BasicMotions", "ArrowHead")
MIXERS = ("mamba", "mingru", "s4d")
ROCKET = "ROCKET"


@dataclass(frozen=True)
class Run:
    """One classifier on one set with one seed; ``model`` is a mixer's name or ROCKET."""

    dataset: str
    model: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.dataset}-{self.model}-{self.seed}"


def load(name: str, part: str) -> tuple[Any, Any]:
    """Return a part of a bundled set, as given, for sktime."""
    from sktime.datasets import load_from_tsfile

    from scanweave.timeseries.classifiers import bundled_sets

    return load_from_tsfile(str(bundled_sets()[name] / f"{name}_{part}.ts"), return_data_type="nested_univ")


def classifier(run: Run, lengths: set[int]) -> Any:
    """Return the classifier of a run; ROCKET wants one length, so it gets series padded by zeros to the longest."""
    from sktime.classification.kernel_based import RocketClassifier
    from sktime.transformations.panel.padder import PaddingTransformer

    from scanweave.timeseries.sktime import ScanClassifier

    if run.model != ROCKET:
        return ScanClassifier(mixer=run.model, random_state=run.seed)
    rocket = RocketClassifier(random_state=run.seed)
    return PaddingTransformer(pad_length=max(lengths)) * rocket if len(lengths) > 1 else rocket


def do(run: Run, out: Path) -> None:
    """Fit on the training part, measure on the test part, and write the result."""
    X, y = load(run.dataset, "TRAIN")
    X_test, y_test = load(run.dataset, "TEST")
    lengths = {len(series) for part in (X, X_test) for series in part.iloc[:, 0]}
    model = classifier(run, lengths)
    begin = time.perf_counter()
    model.fit(X, y)
    seconds = time.perf_counter() - begin
    accuracy = float((model.predict(X_test) == y_test).mean())
    result = {
        **asdict(run),
        "accuracy": accuracy,
        "seconds": seconds,
        "padded": len(lengths) > 1 and run.model == ROCKET,
    }
    beside = out / f"{run.name}.json.part"
    beside.write_text(json.dumps(result, indent=2))
    os.replace(beside, out / f"{run.name}.json")
    print(f"{run.name}: accuracy {accuracy:.4f}, fitted in {seconds:.1f} s", flush=True)


def table(out: Path) -> str:
    """Return the finished runs as a markdown table."""
    results = [json.loads(path.read_text()) for path in sorted(out.glob("*.json"))]
    lines = [
        "| set | classifier | accuracy | spread | seconds to fit | seeds |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for dataset in dict.fromkeys((*SETS, *(r["dataset"] for r in results))):
        for model in dict.fromkeys((*MIXERS, *(r["model"] for r in results))):
            found = [r for r in results if (r["dataset"], r["model"]) == (dataset, model)]
            if not found:
                continue
            accuracy = [r["accuracy"] for r in found]
            spread = f"{min(accuracy):.3f} to {max(accuracy):.3f}"
            # The least: a compiler, or another program, can only add to it.
            seconds = min(r["seconds"] for r in found)
            name = model if model == ROCKET else f"ScanClassifier, {model}"
            name += " (padded)" if found[0]["padded"] else ""
            lines.append(
                f"| {dataset} | {name} | {statistics.mean(accuracy):.3f} | {spread} | {seconds:.1f} | {len(found)} |"
            )
    return "\n".join(lines)


def main() -> None:
    """Do the runs that are not done, and print the table of all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--datasets", nargs="+", default=list(SETS))
    parser.add_argument("--models", nargs="+", default=None, help=f"mixers, and {ROCKET}")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    import torch

    from scanweave.core import list_mixers

    torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore")
    args.out.mkdir(parents=True, exist_ok=True)
    models = args.models or [ROCKET, *(name for name in MIXERS if name in list_mixers())]
    # Seed by seed: a table of fewer seeds is whole before all are done.
    wanted = [Run(d, m, seed) for seed in range(args.seeds) for d in args.datasets for m in models]
    left = [run for run in wanted if not (args.out / f"{run.name}.json").exists()]
    print(f"{len(wanted)} runs, {len(wanted) - len(left)} done before", flush=True)
    for run in left:
        do(run, args.out)
    print(table(args.out))


if __name__ == "__main__":
    main()
