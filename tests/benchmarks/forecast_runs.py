"""Training runs of forecasters in processes of their own, each with its result in a JSON file."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol


class Run(Protocol):
    """What is trained: a task and a data module, made in the process that trains them."""

    @property
    def name(self) -> str:
        """A name for files."""

    @property
    def seed(self) -> int:
        """Seed of weights and order."""

    def record(self) -> dict[str, Any]:
        """Return what identifies the run in its result."""

    def make(self, data: Path) -> tuple[Any, Any]:
        """Return the task and the data module."""


def do(run: Run, data: Path, out: Path, max_epochs: int, patience: int) -> None:
    """Train with one thread, test the best epoch, and write the result."""
    os.environ["OMP_NUM_THREADS"] = "1"
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    import lightning.pytorch as pl
    import torch
    from lightning.pytorch.callbacks import EarlyStopping

    from scanweave.core.resume import RunCheckpoint

    torch.set_num_threads(1)
    pl.seed_everything(run.seed, verbose=False)
    begin = time.perf_counter()
    task, module = run.make(data)
    trainer = pl.Trainer(
        max_epochs=max_epochs,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[EarlyStopping("val/loss", patience=patience), RunCheckpoint(out / "checkpoints" / run.name)],
        use_distributed_sampler=False,
    )
    trainer.fit(task, module)
    best = trainer.checkpoint_callback.best_model_path
    metrics = trainer.test(task, module, ckpt_path=best, verbose=False)[0]
    result = {
        **run.record(),
        **metrics,
        "epochs": trainer.current_epoch,
        "parameters": sum(p.numel() for p in task.parameters()),
        "seconds": time.perf_counter() - begin,
    }
    beside = out / f"{run.name}.json.part"
    beside.write_text(json.dumps(result, indent=2))
    os.replace(beside, out / f"{run.name}.json")
    print(
        f"{run.name}: MSE {metrics['test/mse']:.4f}, {result['epochs']} epochs, {result['seconds']:.0f} s", flush=True
    )


def do_all(runs: Sequence[Run], data: Path, out: Path, processes: int, max_epochs: int, patience: int) -> None:
    """Do the runs that have no result yet."""
    out.mkdir(parents=True, exist_ok=True)
    left = [run for run in runs if not (out / f"{run.name}.json").exists()]
    print(f"{len(runs)} runs, {len(runs) - len(left)} done before", flush=True)
    context = multiprocessing.get_context("spawn")
    with context.Pool(processes) as pool:
        pool.starmap(do, [(run, data, out, max_epochs, patience) for run in left], chunksize=1)


def results(out: Path) -> list[dict[str, Any]]:
    """Return the results of all finished runs."""
    return [json.loads(path.read_text()) for path in sorted(out.glob("*.json"))]
