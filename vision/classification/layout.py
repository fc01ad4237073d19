"""Classes and parts from the names of files: CLASS/image, or train/CLASS/image beside val and test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from ...core.errors import DataError
from .decode import ENDINGS

Part = Literal["train", "val", "test"]
PARTS: dict[str, Part] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
"""What a folder or a cell may call each part."""

_CLUTTER = ("__MACOSX", "Thumbs.db", "desktop.ini")


@dataclass
class Layout:
    """Where images stand.

    Attributes:
        parts: Names and labels of each part; one part ``all`` where nothing divides them.
        rejected: Files that are no image, with the reason; filled where they are to be skipped.
    """

    parts: dict[str, list[tuple[str, str]]]
    rejected: dict[str, str]


def is_clutter(name: str) -> bool:
    """Whether a file or folder is an operating system's own: hidden, or a known name."""
    return any(part.startswith(".") or part in _CLUTTER for part in name.split("/"))


def is_image(name: str) -> bool:
    """Whether a name has an image's ending."""
    return PurePosixPath(name).suffix.lower() in ENDINGS


def images_below(source: str, members: Sequence[str]) -> list[str]:
    """Return all images' names, whatever their folder.

    Raises:
        DataError: There is none.
    """
    images = [name for name in members if is_image(name) and not is_clutter(name)]
    if not images:
        raise DataError(f"{source}: found {len(members)} files and no image among them, expected {', '.join(ENDINGS)}")
    return images


def read_layout(source: str, members: Sequence[str], *, skip: bool, unwrap: bool = False) -> Layout:
    """Find parts and classes.

    Args:
        source: Folder or archive, for messages.
        members: Relative names of files, and of empty folders with a slash at their end.
        skip: Whether files that are no image are left out and counted; else they are refused.
        unwrap: Whether one folder around everything is looked through.

    Returns:
        Names (in the given order) and labels.

    Raises:
        DataError: There is no image, one class alone, an empty class, an image outside the classes, a file that is
            no image, classes that differ in case or blanks alone, or parts with other classes than train has.
    """
    names = [name for name in members if not is_clutter(name)]
    wrapper = _wrapper(names) if unwrap else ""
    tops = {name.removeprefix(wrapper).split("/")[0] for name in names if "/" in name.removeprefix(wrapper)}
    divided = any(PARTS.get(top.lower()) == "train" for top in tops)
    if divided and (other := [top for top in tops if top.lower() not in PARTS]):
        raise DataError(
            f"{source}: found the folders {_listed(other)} beside {_listed(tops.difference(other))}; expected train, "
            "val and test alone, or class folders alone"
        )
    layout = Layout({}, {})
    folders: dict[str, set[str]] = {}
    for name in names:
        parts = name.removeprefix(wrapper).split("/")
        part: str = PARTS[parts[0].lower()] if divided and len(parts) > 1 else "all"
        rest = parts[1:] if part != "all" else parts
        if len(rest) < 2:
            _stray(source, name, layout, skip)
            continue
        folders.setdefault(part, set()).add(rest[0])
        if rest[-1] == "":
            continue
        if is_image(name):
            layout.parts.setdefault(part, []).append((name, rest[0]))
        elif skip:
            layout.rejected[name] = "not an image's ending"
        else:
            raise DataError(
                f"{source}: found {name!r} among the images, expected {', '.join(ENDINGS)}; remove it, or pass "
                "--data.on_bad_sample skip"
            )
    if not layout.parts:
        raise DataError(
            f"{source}: found {len(names)} files and no image in a class folder; expected CLASS/image.jpg, or "
            "train/CLASS/image.jpg (and val, test)"
        )
    for part, classes in folders.items():
        _check_folders(f"{source}: {part}" if divided else source, classes, layout.parts.get(part, []))
    return layout


def check_classes(wanted: Sequence[str], found: Sequence[str], source: str, part: str) -> None:
    """Refuse a part whose classes differ from the training images'.

    Args:
        wanted: Classes of the training images.
        found: Classes of the part.
        source: Folder or file, for the message.
        part: The part's name.

    Raises:
        DataError: Gives both lists.
    """
    absent = [name for name in wanted if name not in found]
    unknown = [name for name in found if name not in wanted]
    if absent or unknown:
        what = [f"no image of {_listed(absent)}"] if absent else []
        what += [f"images of {_listed(unknown)}, which train has not"] if unknown else []
        raise DataError(
            f"{source}: {part} has {' and '.join(what)}; found {_listed(found)}; expected the classes of train: "
            f"{_listed(wanted)}; move some images, or correct the names"
        )


def check_names(classes: Sequence[str], source: str) -> None:
    """Refuse a single class, and classes whose names differ in case or blanks alone.

    Raises:
        DataError: Names them.
    """
    if len(classes) < 2:
        raise DataError(f"{source}: found the one class {_listed(classes)}, expected at least two")
    known: dict[str, str] = {}
    for name in classes:
        other = known.setdefault(" ".join(name.casefold().split()), name)
        if other != name:
            raise DataError(
                f"{source}: found the classes {other!r} and {name!r}, which differ in case or blanks alone; expected "
                "names that no file system and no reader confuses; rename or join them"
            )


def _wrapper(names: Sequence[str]) -> str:
    """Return the folder around all names, where it holds folders alone; else an empty string."""
    tops = {name.split("/")[0] for name in names}
    if len(tops) != 1 or any(name.count("/") == 1 and not name.endswith("/") for name in names):
        return ""
    return tops.pop() + "/"


def _stray(source: str, name: str, layout: Layout, skip: bool) -> None:
    """Treat a file outside the class folders: lists and notes are common there, images are a mistake."""
    if not is_image(name):
        return
    if not skip:
        raise DataError(
            f"{source}: found {name!r} beside the class folders, expected each image inside its class's folder; move "
            "it, or pass --data.on_bad_sample skip"
        )
    layout.rejected[name] = "outside the class folders"


def _check_folders(source: str, classes: set[str], images: Sequence[tuple[str, str]]) -> None:
    filled = {label for _, label in images}
    if empty := sorted(classes - filled):
        raise DataError(
            f"{source}: found no image in the class folders {_listed(empty)}, and images in {_listed(sorted(filled))}; "
            "expected at least one in each; add some, or remove the folder"
        )


def _listed(names: Sequence[str] | set[str]) -> str:
    ordered = list(names) if isinstance(names, list | tuple) else sorted(names)
    return ", ".join(ordered[:20]) + (f", ... ({len(ordered)})" if len(ordered) > 20 else "") or "none"
