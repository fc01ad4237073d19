"""VideoData: from folders and lists of videos to batches of clips."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
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
from .dataset import ClipAugmentation, ClipDataset, ClipInput, VideoNumbers, join_clips
from .layout import ListOptions, VideoSet, check_same_classes, find_labelled_videos, find_videos
from .motion import Motion, MotionName
from .motions import MEAN, SIZE, STD
from .sampling import SamplingKind
from .videos import Video

logger = logging.getLogger(__name__)

VideoPart = Literal["train", "val", "test", "predict"]


class VideoData(pl.LightningDataModule):
    """Videos in classes: files or folders of frames, divided class by class, a few frames of each at a time.

    Args:
        root: A folder of class folders (or of train, val and test, each with class folders) of mp4, avi, mkv or mov
            files or of folders of frames; a .csv of paths and labels, and perhaps first and last frames (``start``,
            ``end``, from 1); by default digits that move, made in memory. ``predict`` takes any folder, or one video.
        splits: Folder of UCF101's or HMDB51's split files, which then say what of root is for training.
        split: Which of the splits, from 1.
        path_column: Column of paths in a CSV file; by default one named path, file, filename, video or name.
        label_column: Column of labels; by default one named label, class, target, category or y.
        split_column: Column that says train, val or test; by default one named split, part, subset, set or fold.
        val_share: Share of the training videos of each class held out for validation where there is no val part.
        test_share: Share of the videos of each class held out for the test where there is no test part.
        seed: Seed of the division, of the order and of the random choice of frames.
        batch_size: Clips per optimiser step, over all processes.
        num_workers: Loader processes; 0 loads in the training process.
        on_bad_sample: What is done about a video that cannot be decoded: raise an error when it is met, or skip it,
            for which a clip of each is decoded once beforehand; what was left out is counted and listed.
        sampling: ``segments`` takes a frame of each of as many equal parts of a video, ``dense`` neighbours, and
            ``whole`` all frames up to that number.
        frames: Frames of a clip.
        stride: Distance of neighbours in dense and whole clips, and of the frames that a prediction looks at.
        motion: A second stream: the ``difference`` of neighbouring frames, or optical ``flow`` by OpenCV.
        img_size: Height and width of the network's input; by default 224, and 32 for the digits.
        mean: Subtracted from red, green and blue; by default ImageNet's, and the digits' own.
        std: Divides them; by default ImageNet's, and the digits' own.
        augment: Whether training clips are cropped and mirrored at random.
        scale: Least and largest share of a frame's area that a random crop takes.
        hflip: Probability of a mirror image; by default 0.5, and 0 for the digits, whose ways would be others.
    """

    def __init__(
        self,
        root: str | None = None,
        splits: str | None = None,
        split: int = 1,
        path_column: str | None = None,
        label_column: str | None = None,
        split_column: str | None = None,
        val_share: float = 0.2,
        test_share: float = 0.2,
        seed: int = 0,
        batch_size: int = 32,
        num_workers: int = 2,
        on_bad_sample: Literal["raise", "skip"] = "raise",
        sampling: SamplingKind = "segments",
        frames: int = 16,
        stride: int = 1,
        motion: MotionName = "none",
        img_size: int | None = None,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        augment: bool = True,
        scale: tuple[float, float] = (0.35, 1.0),
        hflip: float | None = None,
    ) -> None:
        super().__init__()
        for name, share in (("val_share", val_share), ("test_share", test_share)):
            if not 0.0 < share < 1.0:
                raise ConfigError(f"--data.{name} is {share}; expected a share between 0 and 1")
        self.root = root
        self.lists = ListOptions(splits, split, path_column, label_column, split_column)
        self.val_share, self.test_share, self.seed = val_share, test_share, seed
        self.batch_size, self.num_workers, self.on_bad_sample = batch_size, num_workers, on_bad_sample
        own = {"mean": [MEAN] * 3, "std": [STD] * 3} if root is None else {}
        given = {**own, **{name: value for name, value in (("mean", mean), ("std", std)) if value}}
        self.inputs = ClipInput(
            img_size if img_size is not None else SIZE if root is None else 224, sampling, frames, stride, motion,
            **{name: tuple(value) for name, value in given.items()},
        )  # fmt: skip
        flip = hflip if hflip is not None else 0.0 if root is None else 0.5
        # What is not given is the trained model's.
        self._open = [k for k, v in (("img_size", img_size), ("mean", mean), ("std", std)) if not v]
        self.augmentation = ClipAugmentation(scale, flip) if augment else ClipAugmentation((1.0, 1.0), 0.0)
        self.classes: tuple[str, ...] = ()
        self.skipped: dict[str, str] = {}
        self._parts: dict[str, VideoSet] = {}
        self._state: dict[str, Any] = {}
        self._trained: dict[str, Any] | None = None

    # --- finding and dividing -------------------------------------------------------------------------------------

    def setup(self, stage: str | None = None) -> None:
        """List and divide the videos once; with a trained model, the classes are the checkpoint's."""
        Motion(self.inputs.motion)
        if stage == "predict":
            if self._trained is None:
                raise ConfigError("predict needs a trained model: pass --out RUN --ckpt_path best, or its path")
            if "predict" not in self._parts:
                self._parts["predict"] = self._checked(find_videos(self.root, self.lists))
                self._report_skipped()
        elif "train" not in self._parts:
            self._divide()
            self._report_skipped()

    def _divide(self) -> None:
        found = {part: self._checked(videos) for part, videos in find_labelled_videos(self.root, self.lists).items()}
        train = found["train"] if "train" in found else found["all"]
        if "test" in found:
            test = found["test"]
        else:
            train, test = self._hold_out(train, self.test_share, "test_share")
        if "val" in found:
            val = found["val"]
        else:
            train, val = self._hold_out(train, self.val_share, "val_share")
        for part, videos in (("val", val), ("test", test)):
            check_same_classes(train, part, videos)
        self._parts |= {"train": train, "val": val, "test": test}
        if self._trained is not None:
            self._check_same_split(self._trained)
            return
        self.classes = order_classes(train.labels)
        counts = Counter(train.labels)
        self._state = {
            "classes": list(self.classes),
            "counts": [counts[name] for name in self.classes],
            "inputs": self.inputs.to_dict(),
            "split": self._split(),
        }

    def _hold_out(self, videos: VideoSet, share: float, option: str) -> tuple[VideoSet, VideoSet]:
        few = [name for name, count in Counter(videos.labels).items() if count < 2]
        if few:
            raise DataError(
                f"{videos.source}: found one video of {', '.join(few[:20])}, and a share of each class is held out "
                f"(--data.{option}); expected at least two; add videos, or leave the class out"
            )
        rest, held = held_out(np.unique(videos.labels, return_inverse=True)[1], share, self.seed)
        return videos.select(rest.tolist()), videos.select(held.tolist())

    def _checked(self, videos: VideoSet) -> VideoSet:
        """Decode a clip of each once and leave out what fails, where that is asked."""
        if self.on_bad_sample == "raise":
            return videos
        good = []
        for i, video in enumerate(videos.videos):
            try:
                video.read(self.inputs.sampler().pick(len(video)))
                good.append(i)
            except DataError as error:
                self.skipped[video.name] = str(error)
        if not good:
            first = next(iter(self.skipped.values()), "none is listed")
            raise DataError(f"{videos.source}: found {len(videos)} videos, none of which can be decoded: {first}")
        return videos.select(good)

    def leave_out(self, video: Video, error: DataError) -> None:
        """Note a video that failed behind the clip that was tried beforehand.

        Raises:
            DataError: Such videos are not to be left out.
        """
        if self.on_bad_sample == "raise":
            raise error
        self.skipped[video.name] = str(error)
        self._report_skipped()

    def _report_skipped(self) -> None:
        if not self.skipped:
            return
        logger.warning(
            "%d videos left out (--data.on_bad_sample skip), the first: %s",
            len(self.skipped), next(iter(self.skipped.values())),
        )  # fmt: skip
        if self.trainer is not None and self.trainer.is_global_zero:
            with atomic_file(Path(self.trainer.default_root_dir) / "skipped.csv", "w") as file:
                pd.DataFrame(self.skipped.items(), columns=["video", "reason"]).to_csv(file, index=False)

    def _split(self) -> dict[str, str]:
        parts = ("train", "val", "test")
        return {part: digest([v.name for v in self._parts[part].videos], self._parts[part].labels) for part in parts}

    def _check_same_split(self, trained: Mapping[str, Any]) -> None:
        differing = [part for part, own in self._split().items() if trained["split"][part] != own]
        if differing:
            raise DataError(
                f"{self.root or 'moving digits'}: the videos of {', '.join(differing)} are not those that the model "
                "was trained with: other files, labels, shares or seed; divided anew, videos it has learnt from would "
                "count as unseen; bring back the former files and options"
            )

    # --- what the task reads --------------------------------------------------------------------------------------

    def context(self) -> dict[str, Any]:
        """Return what networks are built by: ``classes``, training videos of each (``counts``), and ``inputs``."""
        if not self.state_dict():
            self.setup("fit")
        return {name: self.state_dict()[name] for name in ("classes", "counts", "inputs")}

    def videos(self, part: VideoPart) -> VideoSet:
        """Return a part's videos.

        Raises:
            ConfigError: They are not set up.
        """
        if part not in self._parts:
            raise ConfigError(f"the {part} videos are not set up; call setup() first")
        return self._parts[part]

    def train_dataloader(self) -> DataLoader[Any]:
        """Return clips of the training videos, in an order and of frames that depend on seed and epoch."""
        dataset = self._dataset("train", self.augmentation)
        return train_loader(dataset, self.batch_size, seed=self.seed, **self._loading)

    def val_dataloader(self) -> DataLoader[Any]:
        """Return a clip of each validation video, always the same."""
        return evaluation_loader(self._dataset("val"), self.batch_size, **self._loading)

    def test_dataloader(self) -> DataLoader[Any]:
        """Return a clip of each test video, always the same."""
        return evaluation_loader(self._dataset("test"), self.batch_size, **self._loading)

    def predict_dataloader(self) -> DataLoader[Any]:
        """Return the videos' numbers; the task reads each of them frame by frame."""
        return evaluation_loader(VideoNumbers(len(self.videos("predict"))), 1)

    def _dataset(self, part: VideoPart, augmentation: ClipAugmentation | None = None) -> ClipDataset:
        number = {name: k for k, name in enumerate(self.classes)}
        videos = self.videos(part)
        return ClipDataset(videos, [number[name] for name in videos.labels], self.inputs, augmentation)

    @property
    def _loading(self) -> dict[str, Any]:
        workers = self.num_workers
        return {
            "num_workers": workers, "persistent_workers": workers > 0, "pin_memory": torch.cuda.is_available(),
            "collate_fn": join_clips,
        }  # fmt: skip

    # --- checkpoints ----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return what a trained model needs to read other videos, and the division it was trained by; plain values."""
        return self._state if self._trained is None else self._trained

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over classes and inputs of a trained model.

        Raises:
            ConfigError: The clips would look different to it with these options.
        """
        if "train" in self._parts:
            self._check_same_split(state_dict)
        trained = state_dict["inputs"]
        self.inputs = ClipInput(**{**self.inputs.to_dict(), **{name: trained[name] for name in self._open}})
        own = self.inputs.to_dict()
        if differing := [key for key in own if own[key] != trained[key]]:
            raise ConfigError(
                f"the model was trained with {', '.join(f'--data.{key} {trained[key]}' for key in differing)}; clips "
                f"would look different to it with {', '.join(str(own[key]) for key in differing)}"
            )
        self._trained = dict(state_dict)
        self.classes = tuple(state_dict["classes"])
