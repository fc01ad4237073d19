"""Training inside an estimator: quiet, seeded, in memory, leaving nothing behind."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.utils.data import DataLoader

from ..core.task import Task


def train(
    task: Task,
    training: DataLoader[Any],
    validation: DataLoader[Any] | None,
    *,
    max_epochs: int,
    accelerator: str,
    callbacks: tuple[Callback, ...] = (),
    gradient_clip: float | None = None,
) -> None:
    """Train a built task, and leave it on the CPU with the weights of its best epoch.

    Args:
        task: The task.
        training: Training batches.
        validation: Batches whose loss chooses the epoch; None keeps the last one.
        max_epochs: Passes over the training batches.
        accelerator: As Lightning's Trainer takes it.
        callbacks: Further callbacks.
        gradient_clip: Largest norm of a step's gradient; None for no bound.
    """
    keeper = _KeepBest()
    with _quiet():
        trainer = pl.Trainer(
            max_epochs=max_epochs,
            accelerator=accelerator,
            devices=1,
            logger=False,
            callbacks=[keeper, *callbacks],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            gradient_clip_val=gradient_clip,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
        )
        trainer.fit(task, training, validation)
    if keeper.state is not None:
        task.load_state_dict(keeper.state)
    task.cpu()


class _KeepBest(Callback):
    """Keeps the weights of the epoch with the least validation loss in memory."""

    def __init__(self) -> None:
        self.best = float("inf")
        self.state: dict[str, Tensor] | None = None

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        score = float(trainer.callback_metrics["val/loss"])
        if score < self.best:
            self.best = score
            self.state = {name: value.clone() for name, value in pl_module.state_dict().items()}


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Draw from a generator of this seed, and leave the global one as it was."""
    with torch.random.fork_rng(devices=[]):
        if seed is None:
            torch.seed()
        else:
            torch.manual_seed(seed)
        yield


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Lightning's notes on devices and loaders to itself."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            warnings.filterwarnings("ignore", message=".*LeafSpec.*")
            yield
    finally:
        logger.setLevel(level)
