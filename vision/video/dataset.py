"""Clips as samples of a batch: frames chosen, cropped alike, and turned into a network's input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from ...core.errors import ConfigError
from .layout import VideoSet
from .motion import MotionName, motion_of
from .sampling import Sampling, SamplingKind


@dataclass(frozen=True)
class ClipInput:
    """What every clip goes through, training or not; plain values, kept with the model.

    Args:
        img_size: Height and width of the network's input, pixels.
        sampling: As of :class:`~.sampling.Sampling`.
        frames: Frames of a clip.
        stride: Distance of neighbours, frames.
        motion: The second stream.
        mean: Subtracted from red, green and blue (values from 0 to 1).
        std: Divides them.
    """

    img_size: int = 224
    sampling: SamplingKind = "segments"
    frames: int = 16
    stride: int = 1
    motion: MotionName = "none"
    mean: tuple[float, ...] = IMAGENET_DEFAULT_MEAN
    std: tuple[float, ...] = IMAGENET_DEFAULT_STD

    def __post_init__(self) -> None:
        if self.img_size < 1:
            raise ConfigError(f"--data.img_size is {self.img_size}; expected at least 1 pixel")
        for name in ("mean", "std"):
            value = tuple(getattr(self, name))
            if len(value) != 3 or (name == "std" and min(value) <= 0):
                raise ConfigError(f"--data.{name} is {list(value)}; expected 3 values, of std above 0")
            object.__setattr__(self, name, value)
        self.sampler()

    def sampler(self) -> Sampling:
        """Return what chooses the frames."""
        return Sampling(self.sampling, self.frames, self.stride)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {**asdict(self), "mean": list(self.mean), "std": list(self.std)}

    def centre(self, frames: np.ndarray) -> np.ndarray:
        """Return frames (T, H, W, 3) uint8 scaled so that the short side fits, and the square in their middle."""
        return _resized(frames, self.img_size)

    def tensor(self, frames: np.ndarray) -> Tensor:
        """Return square frames (T, S, S, 3) uint8 as (T, 3, S, S) float32, normalised."""
        mean, std = (torch.tensor(value).view(3, 1, 1) for value in (self.mean, self.std))
        return (torch.from_numpy(frames).movedim(-1, 1).float() / 255 - mean) / std

    def streams(self, frames: np.ndarray) -> dict[str, Tensor]:
        """Return a clip's inputs by stream: ``video`` (T, 3, S, S), and ``motion`` (T, C, S, S) where there is one."""
        streams = {"video": self.tensor(frames)}
        if self.motion != "none":
            streams["motion"] = torch.from_numpy(motion_of(frames, self.motion)).movedim(-1, 1).contiguous()
        return streams


@dataclass(frozen=True)
class ClipAugmentation:
    """Random changes of training clips, the same for all frames of one.

    Args:
        scale: Least and largest share of a frame's area that a random crop takes.
        hflip: Probability of a mirror image.

    Raises:
        ConfigError: A value is out of range.
    """

    scale: tuple[float, float] = (0.35, 1.0)
    hflip: float = 0.5

    def __post_init__(self) -> None:
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ConfigError(f"--data.scale is {list(self.scale)}; expected two shares, 0 < least <= largest <= 1")
        if not 0 <= self.hflip <= 1:
            raise ConfigError(f"--data.hflip is {self.hflip}; expected a probability from 0 to 1")

    def apply(self, frames: np.ndarray, size: int) -> np.ndarray:
        """Return a random crop of frames (T, H, W, 3), resized to (T, size, size, 3), perhaps mirrored."""
        if self.scale[0] < 1:
            crop = v2.RandomResizedCrop(size, self.scale, antialias=True)
            frames = crop(torch.from_numpy(frames).movedim(-1, 1)).movedim(1, -1).numpy()
        frames = _resized(frames, size)
        return np.ascontiguousarray(frames[:, :, ::-1]) if torch.rand(()) < self.hflip else frames


def _resized(frames: np.ndarray, size: int) -> np.ndarray:
    if frames.shape[1:3] == (size, size):
        return np.ascontiguousarray(frames)
    images = v2.functional.resize(torch.from_numpy(frames).movedim(-1, 1), [size], antialias=True)
    return v2.functional.center_crop(images, [size, size]).movedim(1, -1).contiguous().numpy()


class ClipDataset(Dataset[dict[str, Any]]):
    """Clips: ``video`` (T, 3, S, S) float32, ``motion`` where there is a second stream, ``target`` and ``index``.

    Args:
        videos: The videos.
        targets: (N,) classes.
        inputs: How clips are chosen and prepared.
        augmentation: Random changes and a random choice of frames; None for those of a test.
    """

    def __init__(
        self, videos: VideoSet, targets: Sequence[int], inputs: ClipInput, augmentation: ClipAugmentation | None = None
    ) -> None:
        self.videos, self.targets, self.inputs, self.augmentation = videos, targets, inputs, augmentation

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, index: int) -> dict[str, Any]:
        video = self.videos.videos[index]
        sampler = self.inputs.sampler()
        if self.augmentation is None:
            frames = self.inputs.centre(video.read(sampler.pick(len(video))))
        else:
            # The loader seeds NumPy's and PyTorch's generators by seed, epoch and batch.
            generator = np.random.default_rng(np.random.randint(2**31))  # noqa: NPY002
            frames = self.augmentation.apply(video.read(sampler.pick(len(video), generator)), self.inputs.img_size)
        return {**self.inputs.streams(frames), "target": self.targets[index], "index": index}


def join_clips(samples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """Return a batch of clips; shorter ones are filled with zeros, and ``length`` (B,) says how long each is."""
    batch = {name: torch.tensor([sample[name] for sample in samples]) for name in ("target", "index")}
    batch["length"] = torch.tensor([len(sample["video"]) for sample in samples])
    for name in ("video", "motion"):
        if name in samples[0]:
            clips = [sample[name] for sample in samples]
            batch[name] = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True)
    return batch


class VideoNumbers(Dataset[int]):
    """The numbers of videos, for a prediction that reads each of them frame by frame.

    Args:
        count: How many.
    """

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> int:
        return index
