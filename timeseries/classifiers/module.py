"""PanelData: from files of labelled series to batches, and from probabilities back to a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader

from ...core.classification import held_out, order_classes
from ...core.errors import ConfigError, DataError
from ...core.sampler import evaluation_loader, train_loader
from ..data.options import ReadOptions, logger
from ..data.scaling import StandardScaler
from .csv_file import CsvOptions, Layout
from .panel import Panel, PanelDataset, collate, fit_scaler
from .sources import find_files, read_panel

Part = Literal["train", "val", "test"]


class PanelData(L.LightningDataModule):
    """Labelled series from files: divided class by class, scaled by the training part, padded batch by batch.

    Args:
        path: A .ts or CSV file, a folder of NAME_TRAIN and NAME_TEST files, or a set that comes with sktime
            (GunPoint, JapaneseVowels, ...). CSV files are wide (a row per series, a column per step) or long (a row
            per step). ``predict`` reads the test file where there is one, else all series of the file.
        test_path: File of the test series, all of them; by default the one beside a file NAME_TRAIN, else a share of
            path's series.
        label: Column of the labels in CSV files; by default one named label, class, target or y.
        id: Column that names the series in CSV files.
        time: Column that orders the steps in long CSV files.
        values: Columns of numbers in CSV files; by default all that have no other part.
        layout: wide or long CSV files; found out by default.
        val_share: Share of the training series of each class held out for validation.
        test_share: Share of the series of each class held out for the test where there is no test file.
        seed: Seed of the division and of the order of training series.
        batch_size: Series per optimiser step, over all processes.
        num_workers: Loader processes; 0 loads in the training process, as suits data in memory.
        scale: Scale each channel by the training series, or not at all.
        fill: Missing values: error, or mask (they count as their channel's mean over the series).
        delimiter: Character between cells; found out by default.
        decimal: Decimal sign; found out by default.
        thousands: Sign between groups of three digits; found out by default.
        encoding: Text encoding; found out by default.
        missing_value: Number that stands for a missing value, such as -9999.
    """

    def __init__(
        self,
        path: str,
        test_path: str | None = None,
        label: str | None = None,
        id: str | None = None,
        time: str | None = None,
        values: list[str] | None = None,
        layout: Layout | None = None,
        val_share: float = 0.2,
        test_share: float = 0.2,
        seed: int = 0,
        batch_size: int = 16,
        num_workers: int = 0,
        scale: Literal["global", "none"] = "global",
        fill: Literal["error", "mask"] = "error",
        delimiter: str | None = None,
        decimal: str | None = None,
        thousands: str | None = None,
        encoding: str | None = None,
        missing_value: float | None = None,
    ) -> None:
        super().__init__()
        for name, share in (("val_share", val_share), ("test_share", test_share)):
            if not 0.0 < share < 1.0:
                raise ConfigError(f"--data.{name} is {share}; expected a share between 0 and 1")
        self.path, self.test_path = path, test_path
        read = ReadOptions(
            delimiter=delimiter, decimal=decimal, thousands=thousands, encoding=encoding, missing_value=missing_value
        )
        self.options = CsvOptions(layout=layout, label=label, id=id, time=time, values=values, read=read)
        self.val_share, self.test_share, self.seed = val_share, test_share, seed
        self.batch_size, self.num_workers = batch_size, num_workers
        self.scale, self.fill = scale, fill
        self.classes: tuple[str, ...] = ()
        self.scaler: StandardScaler | None = None
        self._trained: dict[str, Any] | None = None
        self._parts: dict[Part, Panel] = {}
        self._predicted: Panel | None = None

    def setup(self, stage: str | None = None) -> None:
        """Read and divide the files once; classes and scaler come from the training part or the checkpoint alone.

        With a trained model, ``test`` reads no training file where the test series have a file of their own.
        """
        if stage == "predict":
            if self._trained is None:
                raise ConfigError("predict needs a trained model: pass --out RUN --ckpt_path best, or its path")
            if self._predicted is None:
                train, test = self._files()
                self._predicted = self._read(test or train, labelled=False)
            self._check_channels(self._predicted)
        elif stage == "test" and self._trained is not None and "test" not in self._parts:
            _, test = self._files()
            if test is None:
                self._divide()
            else:
                self._parts["test"] = self._read(test, labelled=True)
                self._check_channels(self._parts["test"])
                self._check_labels(self._parts["test"])
        elif ("test" if stage == "test" else "train") not in self._parts:
            self._divide()

    def _files(self) -> tuple[Path, Path | None]:
        """Return the training and the test file; the first is not looked for where the second is named."""
        if self.test_path is not None and self._trained is not None:
            return Path(self.path), Path(self.test_path)
        train, beside = find_files(self.path)
        return train, Path(self.test_path) if self.test_path is not None else beside

    def _divide(self) -> None:
        train, test_file = self._files()
        whole = self._read(train, labelled=True)
        if test_file is None:
            whole, test = self._hold_out(whole, self.test_share, "test_share")
        else:
            test = self._read(test_file, labelled=True, like=whole)
        rest, val = self._hold_out(whole, self.val_share, "val_share")
        if self._trained is None:
            self.classes = _classes(whole)
            self.scaler = self._fit_scaler(rest)
        for panel in (whole, test):
            self._check_channels(panel, rest)
            self._check_labels(panel)
        self._parts = {"train": rest, "val": val, "test": test}

    def _hold_out(self, panel: Panel, share: float, option: str) -> tuple[Panel, Panel]:
        _, numbers = np.unique(panel.labels or [], return_inverse=True)
        rest, held = held_out(numbers, share, self.seed)
        if not len(held):
            raise DataError(
                f"{panel.source}: found {len(panel)} series, none with a second one of its class to hold out "
                f"(--data.{option}); expected at least two of a class"
            )
        return panel.select(rest), panel.select(held)

    def _fit_scaler(self, panel: Panel) -> StandardScaler:
        if self.scale == "none":
            return StandardScaler.identity(len(panel.channels))
        return fit_scaler(panel.series, panel.channels, panel.source)

    def _read(self, path: Path, *, labelled: bool, like: Panel | None = None) -> Panel:
        """Read a file, by the columns of the training file where they are settled."""
        options = self.options
        columns = like.columns if like is not None else self._trained["columns"] if self._trained else {}
        if columns and path.suffix.lower() != ".ts":
            settled = {name: getattr(options, name) or columns[name] for name in ("layout", "label", "id", "time")}
            options = replace(options, **settled, values=options.values or columns["values"])
        panel = read_panel(path, options, labelled=labelled)
        if self.fill == "error":
            _refuse_missing(panel)
        return panel

    def _check_channels(self, panel: Panel, like: Panel | None = None) -> None:
        wanted = self._trained["channels"] if self._trained is not None else len(like.channels) if like else 0
        if len(panel.channels) != wanted:
            raise DataError(
                f"{panel.source}: found {len(panel.channels)} channels, expected {wanted} as in the training data"
            )

    def _check_labels(self, panel: Panel) -> None:
        known, found = set(self.classes), set(panel.labels or [])
        if found - known:
            first = next(i for i, label in enumerate(panel.labels or []) if label not in known)
            raise DataError(
                f"{panel.source}: {panel.names[first]}: found the label {(panel.labels or [])[first]!r}, which no "
                f"training series has; found {', '.join(sorted(found))}, expected among {', '.join(self.classes)}; "
                "correct the labels, or train on series of every class"
            )
        if known - found:
            logger.warning(
                "%s: no series to test of %s: its area under the ROC curve counts as 0",
                panel.source, ", ".join(sorted(known - found)),
            )  # fmt: skip

    # --- what the task reads --------------------------------------------------------------------------------------

    def context(self) -> dict[str, Any]:
        """Return the sizes a network is built by: ``channels``, ``classes`` and training series of each."""
        if not self.classes:
            self.setup("fit")
        if self._trained is not None:
            return {name: self._trained[name] for name in ("channels", "classes", "counts")}
        labels = self._parts["train"].labels or []
        counts = [labels.count(name) for name in self.classes]
        return {"channels": len(self._parts["train"].channels), "classes": list(self.classes), "counts": counts}

    def prediction_frame(self, index: np.ndarray, probabilities: np.ndarray) -> pd.DataFrame:
        """Return a row per predicted series: its name, the most likely label, the probability of each class.

        Args:
            index: (N,) numbers of the series, as the batches give them.
            probabilities: (N, K).
        """
        assert self._predicted is not None  # its series were predicted
        table = pd.DataFrame({"series": [self._predicted.names[i] for i in index]})
        table["label"] = [self.classes[k] for k in probabilities.argmax(1)]
        for k, name in enumerate(self.classes):
            table[f"probability_{name}"] = probabilities[:, k]
        return table

    def dataset(self, part: Part) -> PanelDataset:
        """Return a part's series and classes."""
        panel = self._parts[part]
        number = {name: k for k, name in enumerate(self.classes)}
        assert self.scaler is not None  # setup fits or restores it
        return PanelDataset(panel.series, self.scaler, torch.tensor([number[name] for name in panel.labels or []]))

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the training series in an order of (seed, epoch)."""
        dataset = self.dataset("train")
        return train_loader(dataset, self.batch_size, seed=self.seed, drop_last=False, **self._loading)

    def val_dataloader(self) -> DataLoader[Any]:
        """Return the validation series."""
        return evaluation_loader(self.dataset("val"), self.batch_size, **self._loading)

    def test_dataloader(self) -> DataLoader[Any]:
        """Return the test series."""
        return evaluation_loader(self.dataset("test"), self.batch_size, **self._loading)

    def predict_dataloader(self) -> DataLoader[Any]:
        """Return all series to predict, in the file's order."""
        assert self._predicted is not None and self.scaler is not None  # noqa: PT018
        return evaluation_loader(PanelDataset(self._predicted.series, self.scaler), self.batch_size, **self._loading)

    @property
    def _loading(self) -> dict[str, Any]:
        workers = self.num_workers
        return {"num_workers": workers, "persistent_workers": workers > 0, "collate_fn": collate}

    # --- checkpoints ----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return what a trained model needs to read other series: classes, scaler, columns; plain values."""
        if self._trained is not None:
            return self._trained
        if self.scaler is None:
            return {}
        columns = dict(self._parts["train"].columns)
        return {**self.context(), "columns": columns, "scaling": self.scaler.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over classes, scaler and columns of a trained model."""
        self._trained = dict(state_dict)
        self.classes = tuple(state_dict["classes"])
        self.scaler = StandardScaler.from_state(state_dict["scaling"])


def _classes(panel: Panel) -> tuple[str, ...]:
    """Return the labels in order: numbers by size, other names by the alphabet."""
    found = set(panel.labels or [])
    if len(found) < 2:
        raise DataError(
            f"{panel.source}: found the one class {next(iter(found))!r} in {len(panel)} series, expected at least two"
        )
    return order_classes(found)


def _refuse_missing(panel: Panel) -> None:
    holes = [int(np.isnan(one).sum()) for one in panel.series]
    if any(holes):
        first = next(i for i, count in enumerate(holes) if count)
        step, channel = np.argwhere(np.isnan(panel.series[first]))[0]
        raise DataError(
            f"{panel.source}: {panel.names[first]}: found no value at step {step + 1} of {panel.channels[channel]!r} "
            f"({sum(holes)} missing values in {sum(map(bool, holes))} series), expected none; fill them in, or pass "
            "--data.fill mask to read around them"
        )
