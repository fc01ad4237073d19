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
import json
import logging
import math
import os
import statistics
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from scanweave.vision.classification import ClassifyData, ImageClassification

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


class Budget(pl.Callback):
    """Trains for so much processor time, the rate falling from its start to 0 as half a cosine of the share spent.

    Args:
        seconds: The budget of processor time; reading and augmenting count.
        warmup: Share of it in which the rate rises from 0 instead.
    """

    def __init__(self, seconds: float, warmup: float = 0.0) -> None:
        self.seconds, self.warmup = seconds, warmup
        self.begin, self.images = 0.0, 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.begin = time.process_time()

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, index: int) -> None:
        share = min(1.0, (time.process_time() - self.begin) / self.seconds)
        for group in trainer.optimizers[0].param_groups:
            group["lr"] = pl_module.lr * (1 + math.cos(math.pi * share)) / 2
            if share < self.warmup:
                group["lr"] *= share / self.warmup
        self.images += len(batch["index"])

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        trainer.should_stop = time.process_time() - self.begin >= self.seconds


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
    budget = Budget(run.seconds)
    trainer = pl.Trainer(
        max_epochs=-1,
        accelerator="cpu",
        logger=False,
        callbacks=[budget],
        limit_val_batches=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        gradient_clip_val=1.0,
        use_distributed_sampler=False,
        default_root_dir=out / "runs" / run.name,
    )
    trainer.fit(task, module)
    seconds = time.process_time() - budget.begin
    metrics = trainer.test(task, module, verbose=False)[0]
    task.draw(out / "runs" / run.name / "figures")
    result = {
        **asdict(run),
        **metrics,
        "trained_seconds": seconds,
        "images_seen": budget.images,
        "epochs": budget.images / len(module.images("train")),
        "parameters": sum(p.numel() for p in task.model.parameters()),
    }
    beside = out / f"{run.name}.json.part"
    beside.write_text(json.dumps(result, indent=2))
    os.replace(beside, out / f"{run.name}.json")
    print(f"{run.name}: accuracy {metrics['test/accuracy']:.3f}, {budget.images / seconds:.1f} images/s", flush=True)


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
        speed = max(r["images_seen"] / r["trained_seconds"] for r in found)
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
