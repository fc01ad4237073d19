"""Which frames of a video a network sees: drawn at random for training, always the same for a test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from ...core.errors import ConfigError

SamplingKind = Literal["segments", "dense", "whole"]


@dataclass(frozen=True)
class Sampling:
    """Frames chosen from a video.

    Args:
        kind: ``segments`` divides the video in as many equal parts as frames are wanted and takes one from each (the
            middle one for a test); ``dense`` takes neighbours ``stride`` apart (from the middle for a test);
            ``whole`` takes every ``stride``-th one, as many as the video has up to ``frames``.
        frames: How many; the most for ``whole``.
        stride: Distance of neighbours, frames.

    Raises:
        ConfigError: A number is not positive, or the kind is unknown.

    Source:
        Wang et al., Temporal segment networks (2016), section 3.1.
    """

    kind: SamplingKind = "segments"
    frames: int = 16
    stride: int = 1

    def __post_init__(self) -> None:
        if self.kind not in ("segments", "dense", "whole"):
            raise ConfigError(f"--data.sampling is {self.kind!r}, expected segments, dense or whole")
        for name in ("frames", "stride"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--data.{name} is {getattr(self, name)}; expected at least 1")

    def pick(self, count: int, generator: np.random.Generator | None = None) -> np.ndarray:
        """Choose frames of a video; one that is too short repeats frames, but for ``whole``.

        Args:
            count: Frames that the video has, at least 1.
            generator: Draws for training; None chooses as for a test.

        Returns:
            Numbers from 0 to count - 1, rising, int64.
        """
        if self.kind == "segments":
            edges = np.arange(self.frames + 1) * count / self.frames
            share = 0.5 if generator is None else generator.random(self.frames)
            return np.minimum(edges[:-1] + share * np.diff(edges), count - 1).astype(np.int64)
        reach = (self.frames - 1) * self.stride + 1
        if self.kind == "whole":
            return np.arange(0, min(count, reach), self.stride)
        spare = max(count - reach, 0)
        first = spare // 2 if generator is None else int(generator.integers(spare + 1))
        return np.minimum(first + np.arange(self.frames) * self.stride, count - 1)
