"""Detect3dData: labelled frames from KITTI, a folder or made up, divided, changed at random, in batches."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..core.classification import digest
from ..core.errors import ConfigError, DataError, nearest
from ..core.sampler import evaluation_loader, train_loader
from ..core.storage import atomic_file
from .anchors import KITTI_CLASSES, AnchorClass
from .augment import Database, FrameAugmentation
from .sources import PARTS, CloudSource, FolderSource, Frame, KittiSource, Part, SceneSource, Source

logger = logging.getLogger(__name__)

_KITTI_NAMES = tuple(kind.name for kind in KITTI_CLASSES)
_PASTED = {"Car": 15, "Pedestrian": 10, "Cyclist": 10}
_PASTED_OTHER = 10
_LEAST_POINTS = 5
# Anchors of large objects must overlap more to stand for one, as in KITTI's.
_LARGE = 2.5


class Detect3dData(pl.LightningDataModule):
    """Frames of points with boxes, for training, testing and prediction.

    Args:
        root: A KITTI tree (``training/velodyne``, ``calib``, ``label_2``), a folder of one's own (``points/`` with
            .bin, .npy, .pcd or .las files, and boxes in ``labels/NAME.json`` or ``boxes.csv``; see
            :class:`~scanweave.pointcloud.sources.FolderSource`), by default made-up scenes. ``predict`` takes a
            KITTI tree (its ``testing`` part where it has one), a folder of clouds, or one cloud; no labels are needed.
        prepared: Folder written by ``prepare``, or to be written by it; by default ``root/prepared``, which is read
            where it is there.
        classes: What is looked for; by default Car, Pedestrian and Cyclist, and in a folder of one's own all classes
            of its training frames. Objects of other classes are background.
        features: Values of a point in a folder of one's own: x, y, z, intensity, and more that .npy files have.
        scenes: How many scenes are made up.
        scene: What else :func:`~scanweave.pointcloud.kitti.make_scene` takes, as ``{"azimuths": 512}``.
        val_share: Share of the frames of a folder without lists held out for validation.
        test_share: Share held out for the test.
        seed: Seed of scenes, division, order and random changes.
        batch_size: Frames per optimiser step, over all processes.
        num_workers: Processes that load frames.
        on_bad_sample: ``raise`` stops at the first frame that cannot be read, by name; ``skip`` reads each once,
            leaves out what fails, and says how many.
        augment: Whether training frames are changed at random: objects of others put in, mirrored, turned, scaled.
        paste: How many objects of a class a training frame has at least after others were put in; by default 15 cars
            and 10 of any other class; ``{}`` puts none in.
    """

    def __init__(
        self,
        root: str | None = None,
        prepared: str | None = None,
        classes: list[str] | None = None,
        features: int = 4,
        scenes: int = 64,
        scene: dict[str, int] | None = None,
        val_share: float = 0.15,
        test_share: float = 0.15,
        seed: int = 0,
        batch_size: int = 4,
        num_workers: int = 2,
        on_bad_sample: Literal["raise", "skip"] = "raise",
        augment: bool = True,
        paste: dict[str, int] | None = None,
    ) -> None:
        super().__init__()
        for name, share in (("val_share", val_share), ("test_share", test_share)):
            if not 0.0 < share < 0.5:
                raise ConfigError(f"--data.{name} is {share}; expected a share between 0 and 0.5")
        if features < 3:
            raise ConfigError(f"--data.features is {features}; expected at least 3: x, y and z")
        self.root, self.prepared = root, prepared
        self.wanted, self.features = classes, features
        self.scenes, self.scene = scenes, dict(scene or {})
        self.shares, self.seed = (val_share, test_share), seed
        self.batch_size, self.num_workers, self.on_bad_sample = batch_size, num_workers, on_bad_sample
        self.augment, self.paste = augment, paste
        self.anchors: tuple[AnchorClass, ...] = ()
        self.skipped: dict[str, str] = {}
        self._sources: dict[Part, Source] = {}
        self._parts: dict[Part, list[int]] = {}
        self._state: dict[str, Any] = {}
        self._trained: dict[str, Any] | None = None

    # --- finding and dividing -------------------------------------------------------------------------------------

    @property
    def prepared_folder(self) -> Path:
        """Where ``prepare`` writes."""
        if self.prepared:
            return Path(self.prepared)
        if self.root is None:
            raise ConfigError("made-up scenes need no preparation; name a KITTI tree by --data.root")
        return Path(self.root) / "prepared"

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes' names, by label."""
        return tuple(anchor.name for anchor in self.anchors)

    def setup(self, stage: str | None = None) -> None:
        """List and divide the frames once; with a trained model, the classes are the checkpoint's."""
        if stage == "predict":
            if self._trained is None:
                raise ConfigError("predict needs a trained model: pass --out RUN --ckpt_path best, or its path")
            if "predict" not in self._sources:
                source = self._unlabelled()
                self._sources["predict"] = source
                self._parts["predict"] = self._readable(source, range(len(source.names)))
                self._report_skipped()
        elif "train" not in self._sources:
            self._divide()
            self._report_skipped()

    def _labelled(self) -> Source:
        if self.root is None:
            return SceneSource(self.scenes, self.seed, **self.scene)
        if (Path(self.root) / "training").is_dir():
            lists = self.prepared_folder
            if self.prepared and not (lists / "database.npz").is_file():
                raise DataError(
                    f"{lists}: holds no database.npz; write one: scanweave detect3d prepare --data.root ..."
                )
            return KittiSource(self.root, str(lists) if (lists / "ImageSets").is_dir() else None)
        return FolderSource(self.root, self.features, self.shares, self.seed)

    def _unlabelled(self) -> Source:
        if self.root is None:
            return SceneSource(self.scenes, self.seed, **self.scene)
        root = Path(self.root)
        for part in ("testing", "training"):
            if (root / part).is_dir():
                return KittiSource(self.root, part=part)
        return CloudSource(str(root / "points") if (root / "points").is_dir() else self.root, self.features)

    def _divide(self) -> None:
        source = self._labelled()
        for part in PARTS:
            self._sources[part] = source
            self._parts[part] = self._readable(source, source.parts[part])
            if not self._parts[part]:
                raise DataError(f"{source.where}: found no frame for {part}, expected at least 1")
        if self._trained is not None:
            self._check_same_split(self._trained)
            return
        self.anchors = self._choose_anchors()
        self._state = {
            "anchors": [_plain(anchor) for anchor in self.anchors],
            "is_calibrated": source.calibrated,
            "features": self.features if isinstance(source, FolderSource) else 4,
            "split": self._split(),
        }

    def _readable(self, source: Source, indices: Sequence[int]) -> list[int]:
        """Return the frames that can be read, where they are to be tried."""
        if self.on_bad_sample == "raise":
            return list(indices)
        good = []
        for index in indices:
            try:
                source.read(index)
                good.append(index)
            except DataError as error:
                self.skipped[source.names[index]] = str(error)
        return good

    def _report_skipped(self) -> None:
        if not self.skipped:
            return
        logger.warning(
            "%d frames left out (--data.on_bad_sample skip), the first: %s",
            len(self.skipped), next(iter(self.skipped.values())),
        )  # fmt: skip
        if self.trainer is not None and self.trainer.is_global_zero:
            with atomic_file(Path(self.trainer.default_root_dir) / "skipped.csv", "w") as file:
                pd.DataFrame(self.skipped.items(), columns=["frame", "reason"]).to_csv(file, index=False)

    def _choose_anchors(self) -> tuple[AnchorClass, ...]:
        source = self._sources["train"]
        if not isinstance(source, FolderSource):
            known = {kind.name: kind for kind in KITTI_CLASSES}
            wanted = self.wanted or list(_KITTI_NAMES)
            for name in wanted:
                if name not in known:
                    raise ConfigError(
                        f"--data.classes: there are no anchors for {name!r}{nearest(name, known)}; KITTI's frames have "
                        f"{', '.join(known)}"
                    )
            return tuple(known[name] for name in wanted)
        sizes: dict[str, list[list[float]]] = {}
        for index in self._parts["train"]:
            for name, box in source.boxes.get(source.names[index], []):
                sizes.setdefault(name, []).append(box)
        if not sizes:
            raise DataError(f"{source.where}: no training frame has a box; at least one is needed")
        wanted = self.wanted or sorted(sizes, key=lambda name: (-len(sizes[name]), name))
        for name in wanted:
            if name not in sizes:
                raise DataError(
                    f"{source.where}: no training frame has a {name!r}{nearest(name, sizes)}; there are "
                    f"{', '.join(sorted(sizes))}"
                )
        return tuple(_fit_anchor(name, torch.tensor(sizes[name])) for name in wanted)

    def _split(self) -> dict[str, str]:
        names = {part: [self._sources[part].names[i] for i in self._parts[part]] for part in PARTS}
        return {part: digest(own, own) for part, own in names.items()}

    def _check_same_split(self, trained: Mapping[str, Any]) -> None:
        differing = [part for part, own in self._split().items() if trained["split"][part] != own]
        if differing:
            raise DataError(
                f"{self._sources['train'].where}: the frames of {', '.join(differing)} are not those that the model "
                "was trained with: other files, lists, shares or seed; divided anew, frames it has learnt from would "
                "count as unseen; bring back the former files and options"
            )

    # --- what the task asks ---------------------------------------------------------------------------------------

    def context(self) -> dict[str, Any]:
        """Return what a network needs to know, plain values: its classes' ``anchors``, ``features`` of a point, and
        ``is_calibrated``, whether the labels follow KITTI's rules."""
        state = self.state_dict()
        return {name: state[name] for name in ("anchors", "features", "is_calibrated")}

    def frame(self, part: Part, index: int) -> Frame:
        """Return a frame by its number in the source."""
        return self._sources[part].read(index)

    def described(self, part: Part, index: int) -> Frame:
        """Return a frame without its points."""
        return self._sources[part].describe(index)

    def find(self, name: str) -> Frame:
        """Return a labelled frame by name.

        Raises:
            DataError: There is none of this name.
        """
        source = self._labelled()
        if name not in source.names:
            raise DataError(f"{source.where}: there is no frame {name!r}{nearest(name, source.names)}")
        return source.read(source.names.index(name))

    # --- loaders --------------------------------------------------------------------------------------------------

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the training frames in an order of (seed, epoch), changed at random."""
        return train_loader(
            self._frames("train", self._augmentation()), self.batch_size, seed=self.seed, **self._loading
        )

    def val_dataloader(self) -> DataLoader[Any]:
        """Return the validation frames."""
        return self._evaluated("val")

    def test_dataloader(self) -> DataLoader[Any]:
        """Return the test frames."""
        return self._evaluated("test")

    def predict_dataloader(self) -> DataLoader[Any]:
        """Return all frames to predict, sorted by name."""
        return self._evaluated("predict")

    def _evaluated(self, part: Part) -> DataLoader[Any]:
        return evaluation_loader(self._frames(part), self.batch_size, **self._loading)

    def _frames(self, part: Part, augmentation: FrameAugmentation | None = None) -> _Frames:
        source = self._sources[part]
        if isinstance(source, SceneSource):
            source.make(self._parts[part])
        pasted = augmentation is not None and any(augmentation.paste.values())
        database = self._database if pasted else None
        return _Frames(source, self._parts[part], self.classes, augmentation, database)

    def _augmentation(self) -> FrameAugmentation | None:
        if not self.augment:
            return None
        counts = self.paste
        if counts is None:
            counts = {name: _PASTED.get(name, _PASTED_OTHER) for name in self.classes}
        for name, count in counts.items():
            if name not in self.classes or count < 0:
                raise ConfigError(f"--data.paste is {counts}; expected counts, 0 or more, of {', '.join(self.classes)}")
        return FrameAugmentation({self.classes.index(name): count for name, count in counts.items()})

    @cached_property
    def _database(self) -> Database:
        source = self._sources["train"]
        if isinstance(source, KittiSource) and (self.prepared_folder / "database.npz").is_file():
            return Database.read(self.prepared_folder / "database.npz", self.classes, _LEAST_POINTS)
        frames = (labelled(source.read(index), self.classes) for index in self._parts["train"])
        return Database.collect(frames, _LEAST_POINTS)

    @property
    def _loading(self) -> dict[str, Any]:
        workers = self.num_workers
        return {
            "num_workers": workers,
            "persistent_workers": workers > 0,
            "pin_memory": torch.cuda.is_available(),
            "collate_fn": collate,
        }

    # --- checkpoints ----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return what a trained model needs to read other frames, and the division it was trained by; plain values."""
        return self._state if self._trained is None else self._trained

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over the classes of a trained model."""
        if "train" in self._sources:  # a resumed run, divided before its checkpoint was read
            self._check_same_split(state_dict)
        self._trained = dict(state_dict)
        self.anchors = tuple(anchor_of(values) for values in state_dict["anchors"])
        self.features = state_dict["features"]


class _Frames(Dataset[Any]):
    """Frames as a detector learns from them."""

    def __init__(
        self,
        source: Source,
        indices: Sequence[int],
        classes: Sequence[str],
        augmentation: FrameAugmentation | None,
        database: Database | None,
    ) -> None:
        self.source, self.indices, self.classes = source, indices, tuple(classes)
        self.augmentation, self.database = augmentation, database

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, place: int) -> dict[str, Any]:
        index = self.indices[place]
        frame = self.source.read(index)
        points, boxes, labels = labelled(frame, self.classes)
        if self.augmentation is not None:
            points, boxes, labels = self.augmentation.apply(points, boxes, labels, self.database)
        return {"index": index, "points": points, "boxes": boxes, "labels": labels}


def labelled(frame: Frame, classes: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
    """Return a frame's points (N, F), and boxes (M, 7) and labels (M,) int64 of the objects of some classes."""
    number = {name: label for label, name in enumerate(classes)}
    rows = [i for i, name in enumerate(frame.names) if name in number]
    labels = torch.tensor([number[frame.names[i]] for i in rows], dtype=torch.int64)
    return frame.points, frame.boxes[rows], labels


def collate(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return a batch: ``index`` (B,) int64, and lists of ``points``, ``boxes`` and ``labels``."""
    batch: dict[str, Any] = {"index": torch.tensor([sample["index"] for sample in samples])}
    for name in ("points", "boxes", "labels"):
        batch[name] = [sample[name] for sample in samples]
    return batch


def anchor_of(values: Mapping[str, Any]) -> AnchorClass:
    """Return the anchors that plain values describe."""
    plain: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    return AnchorClass(**plain)


def _plain(anchor: AnchorClass) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(anchor).items()}


def _fit_anchor(name: str, boxes: Tensor) -> AnchorClass:
    """Return anchors of the mean size and height of a class's boxes (M, 7)."""
    length, width, height = (round(value, 3) for value in boxes[:, 3:6].mean(0).tolist())
    bottom = round(float((boxes[:, 2] - boxes[:, 5] / 2).mean()), 3)
    matched, unmatched = (0.6, 0.45) if math.hypot(length, width) > _LARGE else (0.5, 0.35)
    return AnchorClass(name, (length, width, height), bottom, matched, unmatched)
