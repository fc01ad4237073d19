"""From a decoded image to a network's input: timm's transforms, their options checked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_transform
from torch import Tensor

from ...core.errors import ConfigError

Transform = Callable[[Image.Image], Tensor]
Interpolation = Literal["bicubic", "bilinear", "nearest"]
# The weights of red, green and blue in grey (ITU-R BT.601), as Pillow's conversion has them.
_LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Augmentation:
    """Random changes of training images, as timm's ``create_transform`` takes them.

    Args:
        scale: Least and largest share of the image's area that a random crop takes.
        hflip: Probability of a mirror image.
        vflip: Probability of an upside-down image.
        color_jitter: Strength of random brightness, contrast and saturation.
        auto_augment: A policy of timm, such as ``rand-m9-mstd0.5-inc1``, in place of the jitter.
        random_erasing: Probability that a rectangle is erased.
    """

    scale: tuple[float, float] = (0.35, 1.0)
    hflip: float = 0.5
    vflip: float = 0.0
    color_jitter: float = 0.3
    auto_augment: str | None = None
    random_erasing: float = 0.0

    def __post_init__(self) -> None:
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ConfigError(f"--data.scale is {list(self.scale)}; expected two shares, 0 < least <= largest <= 1")
        for name in ("hflip", "vflip", "random_erasing"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"--data.{name} is {getattr(self, name)}; expected a probability from 0 to 1")
        if self.color_jitter < 0:
            raise ConfigError(f"--data.color_jitter is {self.color_jitter}; expected a strength of 0 or more")


@dataclass(frozen=True)
class Preprocessing:
    """What every image goes through, training or not.

    Args:
        img_size: Height and width of the network's input, pixels.
        in_chans: 3 for RGB, 1 for grey.
        interpolation: How images are resized.
        crop_pct: Share of a resized test image's side that its centre crop keeps.
        mean: Subtracted from each channel (values from 0 to 1); by default ImageNet's, or its grey.
        std: Divides each channel.
    """

    img_size: int
    in_chans: int = 3
    interpolation: Interpolation = "bicubic"
    crop_pct: float = 0.875
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.img_size < 1:
            raise ConfigError(f"--data.img_size is {self.img_size}; expected at least 1 pixel")
        if not 0 < self.crop_pct <= 1:
            raise ConfigError(f"--data.crop_pct is {self.crop_pct}; expected a share above 0, at most 1")
        for name, default in (("mean", IMAGENET_DEFAULT_MEAN), ("std", IMAGENET_DEFAULT_STD)):
            value = tuple(getattr(self, name)) or _of_channels(default, self.in_chans)
            if len(value) != self.in_chans:
                raise ConfigError(f"--data.{name} has {len(value)} values; expected {self.in_chans}, one per channel")
            object.__setattr__(self, name, value)
        if min(self.std) <= 0:
            raise ConfigError(f"--data.std is {list(self.std)}; expected values above 0")

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {**asdict(self), "mean": list(self.mean), "std": list(self.std)}

    def mode(self, image: Image.Image) -> Image.Image:
        """Return an image with this number of channels."""
        return image.convert("L" if self.in_chans == 1 else "RGB")

    def transform(self, augmentation: Augmentation | None = None) -> Transform:
        """Return the function from a decoded image to (C, S, S) float32.

        Args:
            augmentation: Random changes; None for the resized centre alone.

        Raises:
            ConfigError: timm refuses an option.
        """
        shared: dict[str, Any] = {
            "input_size": (self.in_chans, self.img_size, self.img_size),
            "interpolation": self.interpolation,
            "mean": self.mean,
            "std": self.std,
            "crop_pct": self.crop_pct,
        }
        if augmentation is None:
            return create_transform(**shared)
        try:
            return create_transform(
                **shared,
                is_training=True,
                scale=augmentation.scale,
                hflip=augmentation.hflip,
                vflip=augmentation.vflip,
                color_jitter=augmentation.color_jitter,
                auto_augment=augmentation.auto_augment,
                re_prob=augmentation.random_erasing,
                re_mode="pixel",
            )
        except (AssertionError, ValueError, KeyError) as error:
            raise ConfigError(
                f"--data.auto_augment is {augmentation.auto_augment!r}, which timm refuses: {error}"
            ) from error


def _of_channels(rgb: tuple[float, ...], channels: int) -> tuple[float, ...]:
    return rgb if channels == 3 else (sum(weight * value for weight, value in zip(_LUMA, rgb, strict=True)),)
