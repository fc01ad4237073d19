"""Trainings of equal processor time, and where their results go."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl


class Budget(pl.Callback):
    """Trains for so much processor time, the rate falling from its start to 0 as half a cosine of the share spent.

    Args:
        seconds: The budget of processor time; reading and augmenting count.
        warmup: Share of it in which the rate rises from 0 instead.
    """

    def __init__(self, seconds: float, warmup: float = 0.0) -> None:
        self.seconds, self.warmup = seconds, warmup
        self.begin, self.spent, self.samples = 0.0, 0.0, 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.begin = time.process_time()

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, index: int) -> None:
        share = (time.process_time() - self.begin) / self.seconds
        for group in trainer.optimizers[0].param_groups:
            group["lr"] = pl_module.lr * rate(share, self.warmup)
        self.samples += len(batch["index"])

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.spent = time.process_time() - self.begin
        trainer.should_stop = self.spent >= self.seconds


def rate(share: float, warmup: float = 0.0) -> float:
    """Return the factor on the learning rate when a share of the budget is spent."""
    rising = min(1.0, share / warmup) if warmup else 1.0
    return rising * (1 + math.cos(math.pi * min(1.0, share))) / 2


def train(
    task: pl.LightningModule, data: pl.LightningDataModule, budget: Budget, folder: Path, clip: float = 1.0
) -> Any:
    """Train a task for the budget on this processor, test its last weights, and draw what the test found.

    Args:
        task: The task; its schedule must be constant.
        data: Its data.
        budget: The budget.
        folder: Where the run leaves its files.
        clip: Largest norm of the gradient.

    Returns:
        The test's metrics, with ``steps``, ``trained_seconds``, ``samples_seen`` and ``parameters``.
    """
    trainer = pl.Trainer(
        max_epochs=-1,
        accelerator="cpu",
        logger=False,
        callbacks=[budget],
        limit_val_batches=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        gradient_clip_val=clip,
        use_distributed_sampler=False,
        default_root_dir=folder,
    )
    trainer.fit(task, data)
    metrics = trainer.test(task, data, verbose=False)[0]
    task.draw(folder / "figures")
    return {
        **metrics,
        "steps": trainer.global_step,
        "trained_seconds": budget.spent,
        "samples_seen": budget.samples,
        "parameters": sum(p.numel() for p in task.model.parameters()),
    }


def write_result(path: Path, result: Mapping[str, Any]) -> None:
    """Write a finished run's JSON file, whole or not at all."""
    beside = path.with_name(path.name + ".part")
    beside.write_text(json.dumps(result, indent=2))
    os.replace(beside, path)
