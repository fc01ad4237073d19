"""The folder one run writes: configuration, metrics, checkpoints, logs, figures, predictions."""

from __future__ import annotations

import csv
import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback, ProgressBar, RichProgressBar
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from .errors import ConfigError
from .storage import atomic_file

_FOLDER_VARIABLE = "SCANWEAVE_RUN_FOLDER"


class RunFolder:
    """Paths inside a run's folder, and the small files written there.

    Args:
        path: The folder; it is made when something is written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @classmethod
    def choose(cls, task: str, out: str | None) -> RunFolder:
        """Return ``out``, or ``runs/TASK/<time>``.

        Args:
            task: The task's name.
            out: A folder given by the user.

        Returns:
            The run's folder, the same in all processes of a run.

        Raises:
            ConfigError: Processes started independently of each other were given no common folder.
        """
        if out:
            return cls(out)
        if int(os.environ.get("LOCAL_RANK", 0)) > 0 and _FOLDER_VARIABLE in os.environ:
            return cls(os.environ[_FOLDER_VARIABLE])
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            raise ConfigError("several processes were started by a launcher: name their common folder with --out")
        folder = Path("runs") / task / time.strftime("%Y%m%d-%H%M%S")
        # Lightning starts the other processes of this machine from this one, with its environment.
        os.environ[_FOLDER_VARIABLE] = str(folder)
        return cls(folder)

    @property
    def config(self) -> Path:
        """The configuration the run was made with."""
        return self.path / "config.yaml"

    @property
    def checkpoints(self) -> Path:
        """Folder of ``best.ckpt`` and ``last.ckpt``."""
        return self.path / "checkpoints"

    @property
    def figures(self) -> Path:
        """Folder of the figures."""
        return self.path / "figures"

    @property
    def logs(self) -> Path:
        """Folder of the CSV and TensorBoard logs, one subfolder per start of the run."""
        return self.path / "logs"

    def checkpoint(self, name: str) -> Path:
        """Return the file behind ``best``, ``last`` or a path.

        Args:
            name: ``"best"``, ``"last"``, or a checkpoint's path.

        Returns:
            An existing file.

        Raises:
            ConfigError: There is no such file; lists those there are.
        """
        path = self.checkpoints / f"{name}.ckpt" if name in ("best", "last") else Path(name)
        if not path.is_file():
            there = ", ".join(sorted(p.name for p in self.checkpoints.glob("*.ckpt"))) or "none"
            raise ConfigError(f"{path}: there is no such checkpoint; {self.checkpoints} holds {there}")
        return path

    def loggers(self) -> list[Logger]:
        """Return a CSV and a TensorBoard logger that keep the logs of earlier starts."""
        earlier = [int(p.name.removeprefix("version_")) for p in self.logs.glob("version_*")]
        version = max(earlier, default=-1) + 1
        return [
            CSVLogger(self.path, name="logs", version=version),
            TensorBoardLogger(self.path, name="logs", version=version, default_hp_metric=False),
        ]

    def write_metrics(self, metrics: Mapping[str, Any]) -> Path:
        """Add metrics to ``metrics.json``.

        Args:
            metrics: Values by key (``test/mse``); anything ``float`` takes.

        Returns:
            The file.
        """
        path = self.path / "metrics.json"
        known: dict[str, float] = json.loads(path.read_text()) if path.is_file() else {}
        known.update({key: float(value) for key, value in metrics.items()})
        with atomic_file(path, "w") as file:
            json.dump(dict(sorted(known.items())), file, indent=2)
            file.write("\n")
        return path

    def history(self) -> dict[str, dict[int, float]]:
        """Return the logged values by metric and epoch, the latest start of the run prevailing."""
        found: dict[str, dict[int, float]] = {}
        for path in sorted(self.logs.glob("version_*/metrics.csv"), key=lambda p: int(p.parent.name.split("_")[1])):
            with path.open(newline="") as file:
                for row in csv.DictReader(file):
                    for key, value in row.items():
                        if key not in ("epoch", "step") and value:
                            found.setdefault(key, {})[int(row["epoch"])] = float(value)
        return found


class PlainProgress(ProgressBar):
    """One line per epoch, for output that is not a terminal."""

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        metrics = trainer.callback_metrics  # gathers from all processes: all must ask
        if self.is_disabled:
            return
        values = "  ".join(f"{key} {float(value):.4g}" for key, value in sorted(metrics.items()))
        print(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  {values}", flush=True)

    def disable(self) -> None:
        self._is_disabled = True

    def enable(self) -> None:
        self._is_disabled = False

    @property
    def is_disabled(self) -> bool:
        """Whether this process prints nothing (all but the first)."""
        return getattr(self, "_is_disabled", False)


def progress_bar() -> Callback:
    """Return a Rich progress bar on a terminal, one line per epoch elsewhere."""
    return RichProgressBar(leave=True) if sys.stdout.isatty() else PlainProgress()
