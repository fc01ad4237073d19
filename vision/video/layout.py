"""Which videos there are, and their classes and parts: class folders, CSV lists, and UCF101's and HMDB51's splits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...core.errors import DataError
from ..classification.layout import PARTS, check_names, is_clutter, is_image
from ..classification.sources import find_column, read_table
from .decode import ENDINGS
from .motions import SOURCE, moving_digits
from .videos import Video, is_video, open_video

_PATHS = ("path", "file", "filename", "video", "name")
_LABELS = ("label", "class", "target", "category", "y")
_SPLITS = ("split", "part", "subset", "set", "fold")
_FIRST, _LAST = "start", "end"


@dataclass(frozen=True)
class VideoSet:
    """Videos and their labels, none of them decoded.

    Args:
        source: Folder or file, for messages.
        videos: The videos.
        labels: Their classes; empty where unknown.
    """

    source: str
    videos: list[Video]
    labels: list[str]

    def __len__(self) -> int:
        return len(self.videos)

    def select(self, which: Sequence[int]) -> VideoSet:
        """Return some of the videos, by their numbers."""
        labels = [self.labels[i] for i in which] if self.labels else []
        return VideoSet(self.source, [self.videos[i] for i in which], labels)


@dataclass(frozen=True)
class ListOptions:
    """How a list of videos is read.

    Args:
        splits: Folder of UCF101's (``trainlist01.txt``) or HMDB51's (``CLASS_test_split1.txt``) split files.
        split: Which of the splits, from 1.
        path_column: Column of paths of a CSV list; by default one named path, file, filename, video or name.
        label_column: Column of labels; by default one named label, class, target, category or y.
        split_column: Column that says train, val or test; by default one named split, part, subset, set or fold.
    """

    splits: str | None = None
    split: int = 1
    path_column: str | None = None
    label_column: str | None = None
    split_column: str | None = None


def find_labelled_videos(root: str | None, options: ListOptions) -> dict[str, VideoSet]:
    """Find videos and their classes.

    Args:
        root: A folder of class folders (or of train, val and test, each with class folders) of video files or of
            folders of frames; a .csv list; None for digits that move.
        options: How lists are read.

    Returns:
        The videos of each part, ``all`` where nothing divides them.

    Raises:
        DataError: There are none, or their layout is unclear; says what was found and what was expected.
    """
    if root is None:
        digits = moving_digits()
        return {"all": VideoSet(SOURCE, list(digits), [video.label for video in digits])}
    path = Path(root)
    if not path.exists():
        raise DataError(f"{root}: there is no such file or folder; expected class folders of videos, or a .csv list")
    if path.is_file():
        return _from_csv(path, options, labelled=True)
    if options.splits is not None:
        return _from_splits(path, Path(options.splits), options.split)
    return _from_folders(path)


def find_videos(root: str | None, options: ListOptions) -> VideoSet:
    """Find videos to predict, to any depth; labels are not looked at.

    Args:
        root: As for :func:`find_labelled_videos`, or one video file, or one folder of frames.
        options: How lists are read.

    Returns:
        The videos.

    Raises:
        DataError: There are none.
    """
    if root is None or not Path(root).exists():
        found = find_labelled_videos(root, options)["all"]
        return VideoSet(found.source, found.videos, [])
    path = Path(root)
    if path.is_file() and path.suffix.lower() in (".csv", ".tsv"):
        return _from_csv(path, options, labelled=False)["all"]
    if path.is_file():
        return VideoSet(root, [open_video(path, path.name)], [])
    names = _below(path)
    if not names:
        raise DataError(f"{root}: found no video, expected {', '.join(ENDINGS)}, or folders of images")
    # A folder of frames itself is the one video in it.
    return VideoSet(root, [open_video(path / name, path.name if name == "." else name) for name in names], [])


def _below(folder: Path) -> list[str]:
    """Return the relative names of a folder's videos; a folder with images in it is one video."""
    found: set[str] = set()
    for file in folder.rglob("*"):
        name = file.relative_to(folder).as_posix()
        if is_clutter(name) or not file.is_file():
            continue
        if is_video(name):
            found.add(name)
        elif is_image(name):
            found.add(file.parent.relative_to(folder).as_posix())
    return sorted(found)


def _from_folders(path: Path) -> dict[str, VideoSet]:
    """Read CLASS/video, or train/CLASS/video beside val and test."""
    tops = sorted(top.name for top in path.iterdir() if top.is_dir() and not is_clutter(top.name))
    divided = any(PARTS.get(top.lower()) == "train" for top in tops)
    if divided and (other := [top for top in tops if top.lower() not in PARTS]):
        raise DataError(
            f"{path}: found the folders {', '.join(other)} beside train; expected train, val and test alone, or class "
            "folders alone"
        )
    parts: dict[str, VideoSet] = {}
    for part, folder in [(PARTS[top.lower()], path / top) for top in tops] if divided else [("all", path)]:
        names = _below(folder)
        if loose := [name for name in names if "/" not in name]:
            raise DataError(
                f"{folder}: found {loose[0]!r} ({len(loose)} such) outside the class folders; expected CLASS/VIDEO, or "
                "CLASS/FOLDER/ of frames; move it into its class's folder"
            )
        classes = {sub.name for sub in folder.iterdir() if sub.is_dir() and not is_clutter(sub.name)}
        labels = [name.split("/")[0] for name in names]
        if empty := sorted(classes.difference(labels)):
            raise DataError(f"{folder}: found no video in the class folders {', '.join(empty[:20])}; expected some")
        if not names:
            raise DataError(f"{folder}: found no video in a class folder, expected {', '.join(ENDINGS)}, or frames")
        parts[part] = VideoSet(str(path), [open_video(folder / name, name) for name in names], labels)
    return parts


def _from_csv(path: Path, options: ListOptions, *, labelled: bool) -> dict[str, VideoSet]:
    """Read a list of paths relative to the list's folder; columns start and end name first and last frame, from 1."""
    table = read_table(path)
    header = list(table.columns)
    where = find_column(path, header, options.path_column, _PATHS, "path", needed=True)
    what = find_column(path, header, options.label_column, _LABELS, "label", needed=True) if labelled else None
    split = find_column(path, header, options.split_column, _SPLITS, "split", needed=False) if labelled else None
    parts: dict[str, VideoSet] = {}
    for row, cells in enumerate(table.to_dict("records"), start=2):
        place = f"{path}: row {row}"
        part = PARTS.get(str(cells[split]).strip().lower()) if split else "all"
        if part is None:
            raise DataError(f"{place}, column {split!r}: found {cells[split]!r}, expected train, val or test")
        name = str(cells[where]).strip()
        first, last = (_number(place, column, cells.get(column, "")) for column in (_FIRST, _LAST))
        try:
            video = open_video(path.parent / name, name, (first or 1) - 1, last and last - 1)
        except DataError as error:
            raise DataError(f"{place}, column {where!r}: {error}") from error
        chosen = parts.setdefault(part, VideoSet(str(path), [], []))
        chosen.videos.append(video)
        if what is not None:
            if not (label := str(cells[what]).strip()):
                raise DataError(f"{place}, column {what!r}: found no label, expected one in each row")
            chosen.labels.append(label)
    if split and "train" not in parts:
        raise DataError(f"{path}: column {split!r}: found {', '.join(parts)}, expected some rows of train")
    return parts


def _number(place: str, column: str, cell: str) -> int | None:
    text = cell.strip()
    if not text:
        return None
    if not text.isdecimal() or int(text) < 1:
        raise DataError(f"{place}, column {column!r}: found {cell!r}, expected a frame's number, from 1")
    return int(text)


def _from_splits(root: Path, folder: Path, number: int) -> dict[str, VideoSet]:
    """Read the official split files of UCF101 or HMDB51."""
    train, test = (folder / f"{part}list{number:02d}.txt" for part in ("train", "test"))
    if train.is_file() and test.is_file():
        return {part: _ucf(root, file) for part, file in (("train", train), ("test", test))}
    files = sorted(folder.glob(f"*_test_split{number}.txt"))
    if not files:
        raise DataError(
            f"{folder}: found neither {train.name} and {test.name} (UCF101) nor CLASS_test_split{number}.txt (HMDB51); "
            "name the folder of the split files by --data.splits, and which by --data.split"
        )
    return _hmdb(root, files, number)


def _ucf(root: Path, file: Path) -> VideoSet:
    """Read lines such as ``ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi 1``."""
    names = [line.split()[0] for line in file.read_text().splitlines() if line.strip()]
    videos = [_listed(root, file, row, name) for row, name in enumerate(names, 1)]
    return VideoSet(str(file), videos, [name.split("/")[0] for name in names])


def _hmdb(root: Path, files: Sequence[Path], number: int) -> dict[str, VideoSet]:
    """Read lines such as ``brush_hair_1.avi 1``: 1 is for training, 2 for the test, 0 for neither."""
    parts = {"1": VideoSet(str(root), [], []), "2": VideoSet(str(root), [], [])}
    for file in files:
        label = file.name.removesuffix(f"_test_split{number}.txt")
        for row, line in enumerate(file.read_text().splitlines(), 1):
            name, _, role = line.strip().rpartition(" ")
            if role.strip() in parts:
                parts[role].videos.append(_listed(root, file, row, f"{label}/{name.strip()}"))
                parts[role].labels.append(label)
            elif line.strip() and role != "0":
                raise DataError(f"{file}:{row}: found {line!r}, expected a video's name and 0, 1 or 2")
    return {"train": parts["1"], "test": parts["2"]}


def _listed(root: Path, file: Path, row: int, name: str) -> Video:
    try:
        return open_video(root / name, name)
    except DataError as error:
        raise DataError(f"{file}:{row}: {error}") from error


def check_same_classes(train: VideoSet, part: str, videos: VideoSet) -> None:
    """Refuse training videos of one class, and a part with other classes than training has.

    Raises:
        DataError: Gives both lists.
    """
    classes = sorted(set(train.labels))
    check_names(classes, train.source)
    if unknown := sorted(set(videos.labels).difference(classes)):
        raise DataError(
            f"{videos.source}: {part} has videos of {', '.join(unknown[:20])}, which train has not; found there "
            f"{', '.join(sorted(set(videos.labels))[:20])}; expected some of {', '.join(classes[:20])}"
        )
