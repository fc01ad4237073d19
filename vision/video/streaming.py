"""Scores over time: a video read frame by frame, in memory that its length does not change."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from .dataset import ClipInput
from .lrcn import LRCNNetwork, StreamState
from .motion import Motion
from .videos import Video


class Score(NamedTuple):
    """A decision at one time of a video.

    Attributes:
        frame: The last frame it rests on.
        logits: Of each stream (K,), at this time.
        so_far: Of each stream (K,), the whole video's up to this time.
    """

    frame: int
    logits: dict[str, Tensor]
    so_far: dict[str, Tensor]


@dataclass
class _Prepared:
    """Frames made ready one at a time: each stream's input (C, S, S)."""

    inputs: ClipInput

    def __post_init__(self) -> None:
        self._motion = None if self.inputs.motion == "none" else Motion(self.inputs.motion)

    def frame(self, frame: np.ndarray) -> dict[str, Tensor]:
        square = self.inputs.centre(frame[None])
        found = {"video": self.inputs.tensor(square)[0]}
        if self._motion is not None:
            found["motion"] = torch.from_numpy(self._motion.step(square[0])).movedim(-1, 0).contiguous()
        return found


def score_over_time(
    networks: Mapping[str, nn.Module], video: Video, inputs: ClipInput, device: torch.device | str = "cpu"
) -> Iterator[Score]:
    """Classify a video while it is read: at each frame by a recurrence, else at the end of each window.

    A recurrent network (one with ``step``) keeps its state alone. Others see windows of ``inputs.frames`` frames that
    overlap by a half; one that ends too early is filled with its last frame.

    Args:
        networks: By stream, in evaluation mode.
        video: The video; every ``inputs.stride``-th frame is looked at.
        inputs: How frames are prepared.
        device: Where the networks are.

    Yields:
        The scores, in the order of time.

    Raises:
        DataError: The video cannot be decoded.
    """
    recurrent = all(isinstance(network, LRCNNetwork) for network in networks.values())
    frames = itertools.islice(enumerate(video.frames()), 0, None, inputs.stride)
    prepare = _Prepared(inputs)
    ready = ((number, {k: v.to(device) for k, v in prepare.frame(frame).items()}) for number, frame in frames)
    yield from (_stepwise if recurrent else _windowed)(networks, ready, inputs.frames)


Ready = Iterator[tuple[int, dict[str, Tensor]]]


def _stepwise(networks: Mapping[str, nn.Module], ready: Ready, window: int) -> Iterator[Score]:
    states: dict[str, StreamState | None] = dict.fromkeys(networks)
    for number, frame in ready:
        logits, so_far = {}, {}
        for name, network in networks.items():
            assert isinstance(network, LRCNNetwork)  # the caller's choice of this function
            now, mean, states[name] = network.step(frame[name].unsqueeze(0), states[name])
            logits[name], so_far[name] = now[0], mean[0]
        yield Score(number, logits, so_far)


def _windowed(networks: Mapping[str, nn.Module], ready: Ready, window: int) -> Iterator[Score]:
    kept: deque[dict[str, Tensor]] = deque(maxlen=window)
    hop = max(window // 2, 1)
    total: dict[str, Tensor] = {}
    count, last, fresh = 0, 0, 0

    def decide() -> Score:
        filled = [*kept, *[kept[-1]] * (window - len(kept))]
        logits = {}
        for name, network in networks.items():
            logits[name] = network(torch.stack([frame[name] for frame in filled]).unsqueeze(0))[0]
            total[name] = total.get(name, 0) + logits[name]
        return Score(last, logits, {name: value / count for name, value in total.items()})

    for last, frame in ready:  # noqa: B007  read by decide()
        kept.append(frame)
        fresh += 1
        if len(kept) == window and (count == 0 or fresh >= hop):
            fresh, count = 0, count + 1
            yield decide()
    if fresh:
        count += 1
        yield decide()
