"""ClassifyData: from folders of images to batches, and from probabilities back to a table."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader

from ...core.classification import digest, held_out, order_classes
from ...core.errors import ConfigError, DataError
from ...core.sampler import evaluation_loader, train_loader
from ...core.storage import atomic_file
from .augment import Augmentation, Interpolation, Preprocessing
from .dataset import ImageDataset
from .decode import MAX_PIXELS
from .layout import Part, check_classes, check_names
from .readers import ImageSet
from .sources import SourceOptions, find_images, find_labelled

logger = logging.getLogger(__name__)

AnyPart = Literal["train", "val", "test", "predict"]
_DIGITS_SIZE, _SIZE = 64, 224


class ClassifyData(pl.LightningDataModule):
    """Images in classes, from files: divided class by class, augmented by timm's transforms.

    Args:
        root: A folder of class folders (or of train, val and test, each with class folders), a .zip of one, a .csv of
            paths and labels, or the name of a torchvision dataset; by default scikit-learn's digits. ``predict``
            takes any folder of images, or one image.
        test_root: Images to test on, all of them, laid out like a folder of class folders; by default root's test
            part, or a share of its images.
        path_column: Column of paths in a CSV file; by default one named path, file, filename, image or name.
        label_column: Column of labels; by default one named label, class, target, category or y.
        split_column: Column that says train, val or test; by default one named split, part, subset, set or fold.
        download: Fetch a torchvision dataset that is not there.
        download_root: Folder of torchvision datasets.
        val_share: Share of the training images of each class held out for validation where there is no val part.
        test_share: Share of the images of each class held out for the test where there is no test part.
        seed: Seed of the division, of the order and of the augmentation.
        batch_size: Images per optimiser step, over all processes.
        num_workers: Loader processes; 0 loads in the training process.
        on_bad_sample: What is done about a file that is no image or cannot be decoded: raise an error when it is met,
            or skip it, for which all images are decoded once beforehand; what was left out is counted and listed.
        max_pixels: Most pixels of an image.
        balance: ``oversample`` repeats the images of rarer classes in each epoch until all classes have equally many.
        img_size: Height and width of the network's input; by default 224, and 64 for the digits.
        in_chans: 3 for RGB, 1 for grey.
        interpolation: How images are resized.
        crop_pct: Share of a resized test image's side that its centre crop keeps.
        mean: Subtracted from each channel (values from 0 to 1); by default ImageNet's.
        std: Divides each channel; by default ImageNet's.
        augment: Whether training images are changed at random; the options below say how.
        scale: Least and largest share of the image's area that a random crop takes.
        hflip: Probability of a mirror image.
        vflip: Probability of an upside-down image.
        color_jitter: Strength of random brightness, contrast and saturation.
        auto_augment: A policy of timm, such as ``rand-m9-mstd0.5-inc1``, in place of the jitter.
        random_erasing: Probability that a rectangle is erased.
    """

    def __init__(
        self,
        root: str | None = None,
        test_root: str | None = None,
        path_column: str | None = None,
        label_column: str | None = None,
        split_column: str | None = None,
        download: bool = False,
        download_root: str = "data",
        val_share: float = 0.2,
        test_share: float = 0.2,
        seed: int = 0,
        batch_size: int = 32,
        num_workers: int = 2,
        on_bad_sample: Literal["raise", "skip"] = "raise",
        max_pixels: int = MAX_PIXELS,
        balance: Literal["none", "oversample"] = "none",
        img_size: int | None = None,
        in_chans: Literal[1, 3] = 3,
        interpolation: Interpolation = "bicubic",
        crop_pct: float = 0.875,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        augment: bool = True,
        scale: tuple[float, float] = (0.35, 1.0),
        hflip: float = 0.5,
        vflip: float = 0.0,
        color_jitter: float = 0.3,
        auto_augment: str | None = None,
        random_erasing: float = 0.0,
    ) -> None:
        super().__init__()
        for name, share in (("val_share", val_share), ("test_share", test_share)):
            if not 0.0 < share < 1.0:
                raise ConfigError(f"--data.{name} is {share}; expected a share between 0 and 1")
        if max_pixels < 1:
            raise ConfigError(f"--data.max_pixels is {max_pixels}; expected at least 1")
        self.root, self.test_root = root, test_root
        self.source = SourceOptions(
            path_column, label_column, split_column, on_bad_sample == "skip", download, download_root
        )
        self.val_share, self.test_share, self.seed = val_share, test_share, seed
        self.batch_size, self.num_workers = batch_size, num_workers
        self.max_pixels, self.balance = max_pixels, balance
        self.preprocessing = Preprocessing(
            img_size if img_size is not None else _DIGITS_SIZE if root is None else _SIZE,
            in_chans, interpolation, crop_pct, tuple(mean or ()), tuple(std or ()),
        )  # fmt: skip
        self.augmentation = (
            Augmentation(scale, hflip, vflip, color_jitter, auto_augment, random_erasing) if augment else None
        )
        self.classes: tuple[str, ...] = ()
        self._state: dict[str, Any] = {}
        self._trained: dict[str, Any] | None = None
        self._parts: dict[Part, ImageSet] = {}
        self._training: ImageSet | None = None
        self._predicted: ImageSet | None = None
        self._rejected: dict[str, str] = {}

    # --- finding and dividing -------------------------------------------------------------------------------------

    def setup(self, stage: str | None = None) -> None:
        """List and divide the images once; with a trained model, the classes are the checkpoint's."""
        if stage == "predict":
            if self._trained is None:
                raise ConfigError("predict needs a trained model: pass --out RUN --ckpt_path best, or its path")
            if self._predicted is None:
                self._predicted = self._checked(find_images(self.root, self.source))
                self._report_rejected()
            return
        if stage == "test" and self.test_root is not None and self._trained is not None:
            if "test" not in self._parts:
                self._parts["test"] = self._test_images(self.test_root)
                self._report_rejected()
            return
        if "train" not in self._parts:
            self._divide()
            self._report_rejected()
            if stage == "fit":
                self._record_split()

    def _divide(self) -> None:
        found = find_labelled(self.root, self.source)
        self._rejected.update(found.rejected)
        sets = {part: self._checked(images) for part, images in found.parts.items()}
        train = sets["train"] if "train" in sets else sets["all"]
        check_names(order_classes(train.labels or []), train.source)
        if self.test_root is not None:
            test = None
        elif "test" in sets:
            test = sets["test"]
        else:
            train, test = self._hold_out(train, self.test_share, "test_share")
        if "val" in sets:
            val = sets["val"]
        else:
            train, val = self._hold_out(train, self.val_share, "val_share")
        if self._trained is None:
            self.classes = order_classes(train.labels or [])
        if test is None:
            test = self._test_images(str(self.test_root))
        self._parts = {"train": train, "val": val, "test": test}
        for part in ("val", "test") if self.test_root is None else ("val",):
            check_classes(self.classes, order_classes(self._parts[part].labels or []), train.source, part)
        if self._trained is not None:
            self._check_same_split(self._trained["split"])
        repeat = self.balance == "oversample"
        self._training = train.select(_oversampled(train.labels or [], self.seed)) if repeat else train
        if self._trained is None:
            counts = Counter(self._training.labels)
            self._state = {
                "classes": list(self.classes),
                "counts": [counts[name] for name in self.classes],
                "preprocessing": self.preprocessing.to_dict(),
                "split": self._split(),
            }

    def _test_images(self, root: str) -> ImageSet:
        """Return all images of a folder of class folders; it may lack classes, and may not have others."""
        found = find_labelled(root, self.source)
        self._rejected.update(found.rejected)
        images = self._checked(found.parts["test"] if "test" in found.parts else next(iter(found.parts.values())))
        have = order_classes(images.labels or [])
        check_classes(self.classes, tuple(dict.fromkeys((*self.classes, *have))), root, "the test")
        if absent := [name for name in self.classes if name not in have]:
            logger.warning("%s: no image to test of %s: its area under the ROC curve counts as 0", root, absent)
        return images

    def _hold_out(self, images: ImageSet, share: float, option: str) -> tuple[ImageSet, ImageSet]:
        labels = images.labels or []
        _, numbers = np.unique(labels, return_inverse=True)
        few = [name for name, count in zip(*np.unique(labels, return_counts=True), strict=True) if count < 2]
        if few:
            raise DataError(
                f"{images.source}: found one image of {', '.join(map(str, few))}, and a share of each class is held "
                f"out (--data.{option}); expected at least two; add images, or leave the class out"
            )
        rest, held = held_out(numbers, share, self.seed)
        return images.select(rest), images.select(held)

    def _checked(self, images: ImageSet) -> ImageSet:
        """Decode everything once and leave out what fails, where that is asked."""
        if not self.source.skip:
            return images
        good = []
        for i in range(len(images)):
            try:
                images.picture(i, self.max_pixels)
                good.append(i)
            except DataError as error:
                self._rejected[images.names[i]] = str(error)
        if not good:
            first = next(iter(self._rejected.values()))
            raise DataError(f"{images.source}: found {len(images)} files, none of which can be decoded: {first}")
        return images.select(good)

    def _report_rejected(self) -> None:
        if not self._rejected:
            return
        logger.warning(
            "%d files left out (--data.on_bad_sample skip), the first: %s",
            len(self._rejected),
            next(iter(self._rejected)),
        )
        self._write(pd.DataFrame(self._rejected.items(), columns=["image", "reason"]), "skipped.csv")

    # --- the division, kept -----------------------------------------------------------------------------------------

    def _split(self) -> dict[str, dict[str, Any]]:
        """Return each part's size, and a digest of which images are in it."""
        split: dict[str, dict[str, Any]] = {}
        for part, images in self._parts.items():
            if part != "test" or self.test_root is None:
                split[part] = {"images": len(images), "sha256": digest(images.names, images.labels or [])}
        return split

    def _check_same_split(self, trained: Mapping[str, Any]) -> None:
        for part, own in self._split().items():
            if part in trained and trained[part]["sha256"] != own["sha256"]:
                raise DataError(
                    f"{self.root or 'digits'}: found {own['images']} {part} images, and the model was trained with "
                    f"{trained[part]['images']}, or with other files, labels, shares or seed; divided anew, images it "
                    "has learnt from would count as unseen; bring back the former files and options, or test it on "
                    "others by --data.test_root FOLDER"
                )

    def _record_split(self) -> None:
        parts = [
            pd.DataFrame({"image": images.names, "label": images.labels, "part": part})
            for part, images in self._parts.items()
        ]
        self._write(pd.concat(parts), "split.csv")

    def _write(self, table: pd.DataFrame, name: str) -> None:
        """Write a table into the run's folder, where there is a run."""
        if self.trainer is not None and self.trainer.is_global_zero:
            with atomic_file(Path(self.trainer.default_root_dir) / name, "w") as file:
                table.to_csv(file, index=False)

    # --- what the task reads --------------------------------------------------------------------------------------

    def context(self) -> dict[str, Any]:
        """Return what a network is built by: ``classes``, training images of each (``counts``), ``preprocessing``."""
        if not self.state_dict():
            self.setup("fit")
        return {name: self.state_dict()[name] for name in ("classes", "counts", "preprocessing")}

    def images(self, part: AnyPart) -> ImageSet:
        """Return a part's images."""
        found = self._predicted if part == "predict" else self._parts.get(part)
        if found is None:
            raise ConfigError(f"the {part} images are not set up; call setup() first")
        return found

    def training_images(self) -> ImageSet:
        """Return the images of one epoch: those of the training part, the rarer classes' repeated where asked."""
        return self.images("train") if self._training is None else self._training

    def loader(self, part: AnyPart) -> DataLoader[Any]:
        """Return a part's images in their own order, unchanged but for the preprocessing."""
        return evaluation_loader(self._dataset(self.images(part)), self.batch_size, **self._loading)

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the training images in an order of (seed, epoch), augmented."""
        dataset = self._dataset(self.training_images(), self.augmentation)
        return train_loader(dataset, self.batch_size, seed=self.seed, **self._loading)

    def val_dataloader(self) -> DataLoader[Any]:
        """Return the validation images."""
        return self.loader("val")

    def test_dataloader(self) -> DataLoader[Any]:
        """Return the test images."""
        return self.loader("test")

    def predict_dataloader(self) -> DataLoader[Any]:
        """Return all images to predict, sorted by name."""
        return self.loader("predict")

    def _dataset(self, images: ImageSet, augmentation: Augmentation | None = None) -> ImageDataset:
        number = {name: k for k, name in enumerate(self.classes)}
        targets = None if images is self._predicted else [number[name] for name in images.labels or []]
        transform = self.preprocessing.transform(augmentation)
        return ImageDataset(images, targets, self.preprocessing, transform, self.max_pixels)

    @property
    def _loading(self) -> dict[str, Any]:
        workers = self.num_workers
        return {"num_workers": workers, "persistent_workers": workers > 0, "pin_memory": torch.cuda.is_available()}

    # --- checkpoints ----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return what a trained model needs to read other images, and the division it was trained by; plain values."""
        return self._state if self._trained is None else self._trained

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over classes and preprocessing of a trained model."""
        if "train" in self._parts:  # a resumed run, divided before its checkpoint was read
            self._check_same_split(state_dict["split"])
        trained = Preprocessing(**state_dict["preprocessing"])
        if trained.to_dict() != self.preprocessing.to_dict():
            own = self.preprocessing.to_dict()
            differing = [key for key, value in trained.to_dict().items() if own[key] != value]
            raise ConfigError(
                "the model was trained with "
                + ", ".join(f"--data.{key} {state_dict['preprocessing'][key]}" for key in differing)
                + "; images would look different to it with "
                + ", ".join(str(own[key]) for key in differing)
            )
        self._trained = dict(state_dict)
        self.classes = tuple(state_dict["classes"])


def _oversampled(labels: Sequence[str], seed: int) -> list[int]:
    """Return the images' numbers, those of rarer classes repeated until all classes have as many as the largest."""
    generator = np.random.default_rng(seed)
    values, numbers = np.unique(np.asarray(labels), return_inverse=True)
    members = [np.flatnonzero(numbers == k) for k in range(len(values))]
    most = max(map(len, members))
    chosen: list[int] = []
    for rows in members:
        chosen += rows.tolist() * (most // len(rows)) + generator.permutation(rows)[: most % len(rows)].tolist()
    return chosen
