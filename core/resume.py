"""What makes a run stoppable: regular checkpoints, and resuming with bitwise the weights of a run never stopped."""

from __future__ import annotations

import math
import random
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback, Checkpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

from .errors import ConfigError, nearest
from .sampler import TrainLoader, mix_seed


class Stopped(SIGTERMException):
    """Training was stopped by a signal after its checkpoint had been saved; the exit code is 128 + the signal."""

    def __init__(self, number: int, checkpoint: Path) -> None:
        super().__init__(128 + number)
        self.signal_name = signal.Signals(number).name
        self.checkpoint = checkpoint


def random_state() -> dict[str, Any]:
    """Return the states of this process's random generators as tensors and plain values."""
    version, words, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002
    state = {
        "python": [version, list(words), gauss],
        "numpy": [torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Put this process's random generators into a state returned by :func:`random_state`."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


class ResumeState(Callback):
    """Keeps in each checkpoint what Lightning leaves out: random states, the loader's place, a stop already decided.

    They are restored when training starts, after everything that draws random numbers while a run is set up.
    """

    def __init__(self) -> None:
        self._pending: dict[str, Any] | None = None

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict) -> None:
        states = [random_state()]
        if trainer.world_size > 1:
            gathered: list[Any] = [None] * trainer.world_size
            dist.all_gather_object(gathered, states[0])
            states = gathered
        checkpoint["resume"] = {
            "random": states,
            "loaders": [loader.state_dict() for loader in _train_loaders(trainer)],
            "should_stop": trainer.should_stop,
        }

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict) -> None:
        self._pending = checkpoint.get("resume")
        _open_next_epoch(checkpoint["loops"]["fit_loop"])

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        state, self._pending = self._pending, None
        if state is None:
            return
        for loader, place in zip(_train_loaders(trainer), state["loaders"], strict=True):
            loader.load_state_dict(place)
        trainer.should_stop = state["should_stop"]
        if len(state["random"]) == trainer.world_size:
            set_random_state(state["random"][trainer.global_rank])
        else:
            # Another number of processes: no state fits, and equal states would give equal dropout everywhere.
            pl.seed_everything(mix_seed(trainer.global_step, trainer.global_rank) % 2**32, verbose=False)


def _open_next_epoch(loops: dict[str, Any]) -> None:
    """Close a checkpoint's epoch where all its batches are done.

    Lightning leaves it half open, and with ``max_steps`` runs the epoch's end a second time.
    """
    epochs, batches = loops["epoch_progress"], loops["epoch_loop.batch_progress"]
    if epochs["current"]["processed"] == epochs["current"]["ready"]:
        for count in (epochs["total"], epochs["current"]):
            count["completed"] = count["processed"]
        batches["current"] = dict.fromkeys(batches["current"], 0)
        batches["is_last_batch"] = False


def _train_loaders(trainer: pl.Trainer) -> list[TrainLoader]:
    combined = trainer.fit_loop._combined_loader
    return [loader for loader in combined.flattened if isinstance(loader, TrainLoader)] if combined else []


class RunCheckpoint(Checkpoint):
    """Writes ``last.ckpt`` regularly and ``best.ckpt`` at each improvement, and stops cleanly on SIGTERM and Ctrl-C.

    ``last.ckpt`` is written after every epoch, every ``minutes``, every ``steps``, and when a signal asks the run to
    stop. Inside an epoch it is written after a batch that completed an optimiser step and that no validation follows:
    the places from which Lightning's loops go on exactly.

    Args:
        folder: Where the two files go.
        monitor: Metric that decides about ``best.ckpt``; by default the task's ``monitor`` and ``monitor_mode``.
        mode: ``"min"`` or ``"max"``.
        minutes: Longest time between two writes; 0 for none inside an epoch.
        steps: Most optimiser steps between two writes; 0 for no such limit.
    """

    def __init__(
        self, folder: str | Path, monitor: str = "", mode: str = "min", minutes: float = 15.0, steps: int = 0
    ) -> None:
        if mode not in ("min", "max"):
            raise ConfigError(f"mode is {mode!r}; it must be 'min' or 'max'")
        if minutes < 0 or steps < 0:
            raise ConfigError(f"minutes is {minutes} and steps is {steps}; neither may be negative")
        self.folder = Path(folder)
        self.monitor = monitor
        self.mode = mode
        self.minutes = minutes
        self.steps = steps
        self.best_score = math.nan
        self._saved_time = time.monotonic()
        self._saved_step = 0
        self._signal = 0

    @property
    def last_path(self) -> Path:
        """The checkpoint to resume from."""
        return self.folder / "last.ckpt"

    @property
    def best_path(self) -> Path:
        """The checkpoint with the best monitored metric."""
        return self.folder / "best.ckpt"

    @property
    def best_model_path(self) -> str:
        """Lightning's name for :attr:`best_path`, used by ``trainer.test(ckpt_path="best")``."""
        path = self.best_path if self.best_path.exists() else self.last_path
        return str(path) if path.exists() else ""

    def state_dict(self) -> dict[str, Any]:
        return {"best_score": self.best_score}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_score = state_dict["best_score"]

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if not self.monitor:
            self.monitor = getattr(pl_module, "monitor", "val/loss")
            self.mode = getattr(pl_module, "monitor_mode", "min")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._saved_time, self._saved_step = time.monotonic(), trainer.global_step
        self._signal = signal.SIGTERM if trainer.received_sigterm else 0
        # Lightning's handlers stop at places that are not resumable; it restores the original ones at the end.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._signal == signal.SIGINT and number == signal.SIGINT:
            raise KeyboardInterrupt  # a second Ctrl-C does not wait for the batch
        self._signal = number

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        stop, due = self._vote(trainer)
        if (stop or due) and _is_resumable_here(trainer, batch_idx):
            self._save_last(trainer)
            if stop:
                raise Stopped(stop, self.last_path)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._save_last(trainer)
        stop, _ = self._vote(trainer)
        if stop:
            raise Stopped(stop, self.last_path)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        metrics = trainer.callback_metrics
        if self.monitor not in metrics:
            raise ConfigError(
                f"the best checkpoint is chosen by {self.monitor!r}, which validation did not log; "
                f"it logged {', '.join(sorted(metrics)) or 'nothing'}{nearest(self.monitor, metrics)}"
            )
        score = float(metrics[self.monitor])
        if self._is_better(score):
            self.best_score = score
            trainer.save_checkpoint(self.best_path, weights_only=False)

    def _is_better(self, score: float) -> bool:
        if math.isnan(score):
            return False
        if math.isnan(self.best_score):
            return True
        return score < self.best_score if self.mode == "min" else score > self.best_score

    def _vote(self, trainer: pl.Trainer) -> tuple[int, bool]:
        """Return the signal received (0 for none) and whether a checkpoint is due, agreed among all processes."""
        due = 0 < self.steps <= trainer.global_step - self._saved_step
        late = 0 < self.minutes * 60 <= time.monotonic() - self._saved_time
        if trainer.world_size == 1:
            return self._signal, due or late
        votes = torch.tensor([self._signal, int(due or late)], device=trainer.strategy.root_device)
        dist.all_reduce(votes, op=dist.ReduceOp.MAX)
        return int(votes[0]), bool(votes[1])

    def _save_last(self, trainer: pl.Trainer) -> None:
        trainer.save_checkpoint(self.last_path, weights_only=False)
        self._saved_time, self._saved_step = time.monotonic(), trainer.global_step


def _is_resumable_here(trainer: pl.Trainer, batch_idx: int) -> bool:
    """Whether Lightning's loops, restarted from a checkpoint written now, do what they would have done next."""
    loop = trainer.fit_loop.epoch_loop
    fetcher = trainer.fit_loop._data_fetcher
    if trainer.is_last_batch or loop._is_training_done or fetcher is None:
        return False  # the end of the epoch saves
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0 and not loop._should_check_val_fx(fetcher)
