"""From a video file to frames, by PyAV; what cannot be decoded is refused by name."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np

from ...core.errors import DataError

ENDINGS = (".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v", ".mpg", ".mpeg")

_ADVICE = (
    "expected a whole video; copy or convert it again, or pass --data.on_bad_sample skip to leave out and count it"
)
# AVI keeps the order of decoding only, so its packets' times are not the frames'.
_UNTIMED = ("avi", "mpeg")


@dataclass(frozen=True)
class Index:
    """What a file holds, known without decoding it.

    Attributes:
        frames: How many.
        fps: Frames per second.
        times: Each frame's presentation time in the stream's own unit, rising; empty where the container has none.
        keys: The times of the frames that decoding can start at.
    """

    frames: int
    fps: float
    times: tuple[int, ...]
    keys: tuple[int, ...]


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a file's first video stream; whatever fails inside becomes a DataError that names the file."""
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise DataError(f"{path}: found no video stream in it, {_ADVICE}")
            # A thread of its own for each loader process is what the loader is for.
            container.streams.video[0].thread_type = "NONE"
            yield container
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such file") from error
    except av.FFmpegError as error:
        size = path.stat().st_size
        found = "the file is empty (0 bytes)" if not size else f"cannot be decoded ({error.strerror}), {size} bytes"
        raise DataError(f"{path}: {found}, {_ADVICE}") from error


def read_index(path: Path) -> Index:
    """Count a file's frames and find where decoding can start, from its packets.

    Args:
        path: The file.

    Returns:
        The index.

    Raises:
        DataError: The file is no video, has no frame, or ends before the end that it names.
    """
    with _opened(path) as container:
        stream = container.streams.video[0]
        packets = [(p.pts, p.is_keyframe) for p in container.demux(stream) if p.size and not p.is_discard]
        if not packets:
            raise DataError(f"{path}: found 0 frames, {_ADVICE}")
        fps = float(stream.average_rate or stream.guessed_rate or 0) or 25.0
        timed = container.format.name not in _UNTIMED and all(pts is not None for pts, _ in packets)
        times = tuple(sorted({pts for pts, _ in packets})) if timed else ()
        if len(times) != len(packets):
            times = ()
        _check_whole(path, container, stream, len(packets), times, fps)
        keys = tuple(sorted(pts for pts, is_key in packets if is_key)) if times else ()
        return Index(len(packets), fps, times, keys)


def _check_whole(path: Path, container: Any, stream: Any, found: int, times: Sequence[int], fps: float) -> None:
    """Refuse a file that holds fewer frames than it says."""
    promised = stream.frames
    if not promised and times and container.duration and len(container.streams) == 1:
        span = float((times[-1] - times[0]) * stream.time_base) + 1 / fps
        promised = round(found * container.duration / av.time_base / span)
    # Cutting without encoding anew leaves a few frames that are not shown.
    if found < 0.95 * promised - 2:
        raise DataError(f"{path}: truncated, found {found} of {promised} frames, {_ADVICE}")


def _pixels(frame: Any) -> np.ndarray:
    """Return a frame as (H, W, 3), turned as its display matrix says."""
    image = frame.to_ndarray(format="rgb24")
    turns = round(frame.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(image, turns)) if turns else image


def read_frames(path: Path, numbers: Sequence[int], index: Index | None = None) -> np.ndarray:
    """Decode some frames; between distant ones it jumps where the container allows that.

    Args:
        path: The file.
        numbers: Frames to read, in any order, the same one perhaps more than once.
        index: The file's index, where it was read before.

    Returns:
        (len(numbers), H, W, 3) uint8, RGB, upright.

    Raises:
        DataError: The file cannot be decoded, or has no such frame; names the file and the frame.
    """
    index = read_index(path) if index is None else index
    wanted = sorted(set(numbers))
    if not wanted or wanted[0] < 0 or wanted[-1] >= index.frames:
        raise DataError(f"{path}: asked for the frames {wanted[:1]} to {wanted[-1:]}, found {index.frames} frames")
    found: dict[int, np.ndarray] = {}
    with _opened(path) as container:
        stream = container.streams.video[0]
        frames, place = container.decode(stream), 0
        for number in wanted:
            start = _start(index, number)
            if start > place:
                container.seek(index.times[start], stream=stream)
                frames, place = container.decode(stream), start
            for frame in frames:
                at = bisect.bisect_left(index.times, frame.pts) if index.times else place
                place = at + 1
                if at >= number:
                    found[number] = _pixels(frame)
                    break
            if number not in found:
                raise DataError(f"{path}: ends at frame {place} of {index.frames}, {_ADVICE}")
    return np.stack([found[number] for number in numbers])


def _start(index: Index, number: int) -> int:
    """Return the last frame up to ``number`` that decoding can start at; 0 where none is known."""
    if not index.keys:
        return 0
    at = bisect.bisect_right(index.keys, index.times[number]) - 1
    return bisect.bisect_left(index.times, index.keys[at]) if at >= 0 else 0


def stream_frames(path: Path) -> Iterator[np.ndarray]:
    """Decode a file's frames one after another; one at a time is held.

    Args:
        path: The file.

    Yields:
        (H, W, 3) uint8, RGB, upright.

    Raises:
        DataError: The file cannot be decoded, or has no frame.
    """
    count = 0
    with _opened(path) as container:
        for frame in container.decode(video=0):
            count += 1
            yield _pixels(frame)
    if not count:
        raise DataError(f"{path}: found 0 frames, {_ADVICE}")
