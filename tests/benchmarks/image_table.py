"""Train image backbones on a folder of small photographs, each for the same processor time, and print the table.

Each run reads, augments and trains with one thread until it has had its seconds of a processor, whatever else runs; the
learning rate falls as half a cosine of the share of them that is spent. All get the same optimiser, rate, batches and
augmentation, and their last weights are tested. Models that cut images into patches of 16 get smaller patches, so that
small images give tokens. The scan backbones are registered ones made smaller: VMamba with depths 1-1-2-1 and widths
from 48, ViL with 8 blocks of width 128.

Run from the repository: ``python -m tests.benchmarks.image_table --data FOLDER_OR_ZIP --out FOLDER --seconds 600``.
Each finished run is a JSON file in the output folder; a run that has one is not done again.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from scanweave.vision.classification import ClassifyData, ImageClassification

from .budget import Budget, train, write_result
from .forecast_runs import results

BACKBONES: dict[str, tuple[str, dict[str, Any]]] = {
    "vmamba, small": ("vmamba_tiny", {"depths": (1, 1, 2, 1), "dims": (48, 96, 192, 384)}),
    "vil, small": ("vil_tiny", {"depth": 8, "embed_dim": 128}),
    "resnet18": ("resnet18", {}),
    "vit_tiny": ("vit_tiny_patch16_224", {}),
    "mambaout_femto": ("mambaout_femto", {}),
}
LARGE_PATCH = 16


@dataclass(frozen=True)
class Run:
    """One backbone with one seed: how long it trains, on images of which size, in patches of which size."""

    backbone: str
    seed: int
    seconds: float
    img_size: int
    patch: int
    lr: float

    @property
    def name(self) -> str:
        return f"{self.backbone.replace(', ', '_')}-{self.seed}"


def has_large_patches(backbone: str) -> bool:
    """Whether a model cuts images into patches of 16 by 16 pixels."""
    import timm

    size = getattr(getattr(timm.create_model(backbone), "patch_embed", None), "patch_size", None)
    return size in (LARGE_PATCH, (LARGE_PATCH, LARGE_PATCH))


def do(run: Run, data: Path, out: Path) -> None:
    """Train for the budget, test the last weights, and write the result."""
    pl.seed_everything(run.seed, verbose=False)
    name, options = BACKBONES[run.backbone]
    task = ImageClassification(
        name,
        {**options, **({"patch_size": run.patch} if has_large_patches(name) else {})},
        lr=run.lr,
        label_smoothing=0.1,
        schedule="constant",
    )
    module = ClassifyData(str(data), img_size=run.img_size, seed=run.seed, batch_size=32, num_workers=0, crop_pct=1.0)
    found = train(task, module, Budget(run.seconds), out / "runs" / run.name)
    write_result(
        out / f"{run.name}.json",
        {**asdict(run), **found, "epochs": found["samples_seen"] / len(module.images("train"))},
    )
    speed = found["samples_seen"] / found["trained_seconds"]
    print(f"{run.name}: accuracy {found['test/accuracy']:.3f}, {speed:.1f} images/s", flush=True)


def table(out: Path) -> str:
    """Return the finished runs as a markdown table, the best accuracy first."""
    done = results(out)
    lines = [
        "| backbone | accuracy | spread | macro F1 | epochs | images/CPU-s | parameters | CPU-s | seeds |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    rows = []
    for backbone in dict.fromkeys(r["backbone"] for r in done):
        found = [r for r in done if r["backbone"] == backbone]
        mean = {
            key: statistics.mean(r[key] for r in found)
            for key in ("test/accuracy", "test/f1", "epochs", "trained_seconds", "parameters")
        }
        speed = max(r["samples_seen"] / r["trained_seconds"] for r in found)
        low, high = (f(r["test/accuracy"] for r in found) for f in (min, max))
        cells = [
            backbone, f"{mean['test/accuracy']:.3f}", f"{low:.3f} to {high:.3f}", f"{mean['test/f1']:.3f}",
            f"{mean['epochs']:.1f}", f"{speed:.1f}", f"{mean['parameters'] / 1e6:.2f} M",
            f"{mean['trained_seconds']:.0f}", str(len(found)),
        ]  # fmt: skip
        rows.append((mean["test/accuracy"], "| " + " | ".join(cells) + " |"))
    return "\n".join([*lines, *(row for _, row in sorted(rows, reverse=True))])


def main() -> None:
    """Do the runs that are not done, and print the table of all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder or .zip of class folders")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--backbones", nargs="+", default=list(BACKBONES), choices=list(BACKBONES))
    parser.add_argument("--seconds", type=float, default=600.0, help="of a processor, each run")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--img-size", type=int, default=64)
    parser.add_argument("--patch", type=int, default=8, help=f"for models whose patches are of {LARGE_PATCH}")
    parser.add_argument("--lr", type=float, default=1e-3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    args.out.mkdir(parents=True, exist_ok=True)
    # Seed by seed: a table of fewer seeds is whole before all are done.
    wanted = [
        Run(backbone, seed, args.seconds, args.img_size, args.patch, args.lr)
        for seed in range(args.seeds)
        for backbone in args.backbones
    ]
    left = [run for run in wanted if not (args.out / f"{run.name}.json").exists()]
    print(f"{len(wanted)} runs, {len(wanted) - len(left)} done before", flush=True)
    for run in left:
        do(run, args.data, args.out)
    print(table(args.out))


if __name__ == "__main__":
    main()
