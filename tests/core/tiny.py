"""The smallest real task: a linear network on random tensors, run by the same command line as every other."""

from __future__ import annotations

import os
import random
import resource
import signal
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torchmetrics import MeanAbsoluteError, MeanSquaredError

from scanweave.core.sampler import evaluation_loader, train_loader
from scanweave.core.spec import Session, TaskSpec, Verb
from scanweave.core.task import Stage, Task


class TinyTask(Task):
    """Base class of the tiny models."""

    def configure_losses(self) -> None:
        self.criterion = nn.MSELoss()

    def configure_metrics(self) -> None:
        self.set_metrics({"mse": MeanSquaredError(), "mae": MeanAbsoluteError()})

    def compute(self, batch: Any, stage: Stage) -> Tensor:
        prediction = self(batch["x"])
        self.metrics(stage).update(prediction.detach(), batch["y"])
        return self.criterion(prediction, batch["y"])

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self(batch["x"])

    def save_predictions(self, outputs: list[Any], folder: Path) -> Path:
        path = folder / "predictions.npy"
        np.save(path, torch.cat(outputs).numpy())
        return path


class Mlp(TinyTask):
    """Two layers and dropout, with a parameter of its own that has no decay."""

    def __init__(self, hidden_size: int = 8, dropout: float = 0.1, lr: float = 1e-2, **options: Any) -> None:
        super().__init__(lr=lr, **options)
        self.hidden_size = hidden_size
        self.dropout = dropout

    def configure_models(self) -> None:
        self.model = nn.Sequential(
            nn.Linear(4, self.hidden_size), nn.ReLU(), nn.Dropout(self.dropout), nn.Linear(self.hidden_size, 1)
        )


class InfiniteGradient(Mlp):
    """A finite loss whose gradient is infinite: the square root at 0."""

    def compute(self, batch: Any, stage: Stage) -> Tensor:
        return super().compute(batch, stage) + (self(batch["x"]) * 0.0).abs().sum().sqrt()


class TinyRows:
    """Rows of a fixed random regression; training rows are jittered by all three global generators."""

    def __init__(self, size: int, seed: int, jitter: float = 0.0, bad_row: int = -1) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.x = torch.randn(size, 4, generator=generator)
        self.y = self.x.sum(1, keepdim=True).tanh()
        self.jitter = jitter
        if bad_row >= 0:
            self.x[bad_row] = float("nan")

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> dict[str, Any]:
        noise = random.random() + np.random.rand() + torch.rand(4)  # noqa: NPY002
        return {"x": self.x[index] + self.jitter * noise, "y": self.y[index], "index": index}


class TinyData(pl.LightningDataModule):
    """Random rows.

    Args:
        size: Training rows.
        batch_size: Rows per step over all processes.
        jitter: Size of the training noise.
        workers: Loader processes.
        bad_row: A training row made of NaN; negative for none.
    """

    def __init__(
        self, size: int = 40, batch_size: int = 8, jitter: float = 0.1, workers: int = 0, bad_row: int = -1
    ) -> None:
        super().__init__()
        self.size = size
        self.batch_size = batch_size
        self.jitter = jitter
        self.workers = workers
        self.bad_row = bad_row

    def train_dataloader(self) -> Any:
        rows = TinyRows(self.size, 1, self.jitter, self.bad_row)
        return train_loader(rows, self.batch_size, num_workers=self.workers)

    def val_dataloader(self) -> Any:
        return evaluation_loader(TinyRows(13, 2), self.batch_size)

    def test_dataloader(self) -> Any:
        return evaluation_loader(TinyRows(13, 3), self.batch_size)

    def predict_dataloader(self) -> Any:
        return evaluation_loader(TinyRows(13, 3), self.batch_size)


class Signal(Callback):
    """Sends this process a signal after a number of batches, counted over the run.

    Args:
        number: The signal; 9 cannot be caught.
        batch: Zero-based batch over all epochs after which it is sent.
    """

    def __init__(self, number: int, batch: int) -> None:
        self.number = number
        self.batch = batch

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, index: int) -> None:
        if trainer.global_step == self.batch:
            os.kill(os.getpid(), signal.Signals(self.number))


class FullDisk(Callback):
    """Lets no file of this process grow beyond a size, from the start of an epoch on.

    Args:
        epoch: Zero-based epoch.
        size: Bytes.
    """

    def __init__(self, epoch: int, size: int) -> None:
        self.epoch = epoch
        self.size = size

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch == self.epoch:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, resource.RLIM_INFINITY))


def greet(name: str = "world", times: int = 1) -> None:
    """Print a greeting.

    Args:
        name: Whom to greet.
        times: How often.
    """
    print("\n".join([f"hello {name}"] * times))


def count(session: Session, scale: int = 1) -> None:
    """Print the number of test batches.

    Args:
        session: The configured run.
        scale: Factor.
    """
    print(f"batches {scale * len(session.data.test_dataloader())} of {type(session.model).__name__}")


SPEC = TaskSpec(
    name="tiny",
    help="Fit a linear map.",
    module_class=TinyTask,
    data_class=TinyData,
    verbs={"greet": Verb(greet, "say hello"), "count": Verb(count, "count batches", configured=True)},
    trainer_defaults={"max_epochs": 3, "accelerator": "cpu"},
    trusted=("tests.core.tiny.",),
)
