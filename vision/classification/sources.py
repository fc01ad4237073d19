"""Find the images behind --data.root: class folders, a zip archive, a CSV list, a torchvision dataset, or digits."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ...core.errors import DataError, nearest
from .layout import PARTS, images_below, is_image, read_layout
from .readers import ArrayReader, DatasetReader, FileReader, ImageSet, Reader, ZipReader, folder_members, zip_members

DIGITS = "digits"
TORCHVISION = (
    "CIFAR10", "CIFAR100", "DTD", "EMNIST", "FGVCAircraft", "FashionMNIST", "Flowers102", "Food101", "KMNIST", "MNIST",
    "OxfordIIITPet", "STL10", "SVHN", "USPS",
)  # fmt: skip
"""Datasets of torchvision that are read by name."""

_PATH_NAMES = ("path", "file", "filename", "file_name", "image", "image_path", "name")
_LABEL_NAMES = ("label", "class", "target", "category", "y")
_PART_NAMES = ("split", "part", "subset", "set", "fold")


@dataclass(frozen=True)
class SourceOptions:
    """How images are found.

    Args:
        path_column: Column of paths in a CSV file; by default one named path, file, filename, image or name.
        label_column: Column of labels; by default one named label, class, target, category or y.
        split_column: Column that says train, val or test; by default one named split, part, subset, set or fold.
        skip: Whether files that are no image are left out and counted.
        download: Whether a torchvision dataset may be fetched.
        download_root: Folder of torchvision datasets.
    """

    path_column: str | None = None
    label_column: str | None = None
    split_column: str | None = None
    skip: bool = False
    download: bool = False
    download_root: str = "data"


@dataclass(frozen=True)
class Found:
    """Images by part (``all`` where nothing divides them), and files left out with the reason."""

    parts: dict[str, ImageSet]
    rejected: dict[str, str]


def find_labelled(root: str | None, options: SourceOptions) -> Found:
    """Find images and their classes.

    Args:
        root: A folder, a .zip or .csv file, the name of a torchvision dataset; None for scikit-learn's digits.
        options: How they are found.

    Returns:
        The images of each part.

    Raises:
        DataError: There are none, or their layout is unclear; names what was found and what was expected.
    """
    if root is None:
        return Found({"all": _digits()}, {})
    path = Path(root)
    if not path.exists():
        return Found(_torchvision(root, options), {})
    if path.suffix.lower() in (".csv", ".tsv"):
        return Found(_from_csv(path, options, labelled=True), {})
    members, reader = _listing(path)
    layout = read_layout(root, members, skip=options.skip, unwrap=path.is_file())
    parts = {
        part: ImageSet(
            root, [n for n, _ in images], [label for _, label in images], list(range(len(images))),
            reader([name for name, _ in images]),
        )
        for part, images in layout.parts.items()
    }  # fmt: skip
    return Found(parts, layout.rejected)


def find_images(root: str | None, options: SourceOptions) -> ImageSet:
    """Find images to predict; folders are searched to any depth, labels are not looked at.

    Args:
        root: As for :func:`find_labelled`, or a single image.
        options: How they are found.

    Returns:
        The images.

    Raises:
        DataError: There are none.
    """
    if root is None:
        return _digits()
    path = Path(root)
    if not path.exists():
        parts = _torchvision(root, options)
        return parts.get("test", parts["train"])
    if path.is_file() and is_image(path.name):
        return ImageSet(root, [path.name], None, [0], FileReader([path]))
    if path.suffix.lower() in (".csv", ".tsv"):
        return _from_csv(path, options, labelled=False)["all"]
    members, reader = _listing(path)
    names = images_below(root, members)
    return ImageSet(root, names, None, list(range(len(names))), reader(names))


def _listing(path: Path) -> tuple[list[str], Any]:
    """Return a folder's or archive's names, and what makes a reader of some of them."""
    if path.is_dir():
        return folder_members(path), lambda names: FileReader([path / name for name in names])
    if path.suffix.lower() == ".zip":
        return zip_members(path), lambda names: ZipReader(path, names)
    raise DataError(f"{path}: found a file, expected a folder of class folders, a .zip of them, or a .csv of paths")


def _digits() -> ImageSet:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    names = [f"digit {i}" for i in range(len(images))]
    return ImageSet(DIGITS, names, [str(k) for k in digits.target], list(range(len(images))), ArrayReader(images))


def _torchvision(name: str, options: SourceOptions) -> dict[str, ImageSet]:
    """Read a torchvision dataset's training and test part, fetched where that is allowed."""
    if name not in TORCHVISION:
        raise DataError(
            f"{name}: no such file or folder, and no dataset of that name{nearest(name, TORCHVISION)}; expected a "
            f"folder of class folders, a .zip of them, a .csv of paths, or one of {', '.join(TORCHVISION)}"
        )
    import torchvision.datasets

    make = getattr(torchvision.datasets, name)
    accepted = inspect.signature(make).parameters
    options_of: dict[str, Any] = {"root": options.download_root, "download": options.download}
    if name == "EMNIST":
        options_of["split"] = "balanced"
    parts: dict[str, ImageSet] = {}
    train_split = "trainval" if name in ("FGVCAircraft", "OxfordIIITPet") else "train"
    for part, split in (("train", train_split), ("test", "test")):
        chosen = {"train": part == "train"} if "train" in accepted else {"split": split}
        try:
            dataset = make(**options_of, **chosen)
        except RuntimeError as error:
            raise DataError(
                f"{name}: not found whole in {options.download_root!r} ({error}); pass --data.download true to fetch "
                "it, or --data.download_root FOLDER where it lies"
            ) from error
        parts[part] = _dataset_images(name, part, dataset)
    return parts


def _dataset_images(name: str, part: str, dataset: Any) -> ImageSet:
    numbers = next(getattr(dataset, key) for key in ("targets", "labels", "_labels") if hasattr(dataset, key))
    classes = getattr(dataset, "classes", None)
    labels = [str(classes[int(k)]) if classes else str(int(k)) for k in numbers]
    names = [f"{part} {i}" for i in range(len(labels))]
    return ImageSet(name, names, labels, list(range(len(labels))), DatasetReader(dataset))


# --- CSV files ----------------------------------------------------------------------------------------------------


def _from_csv(path: Path, options: SourceOptions, *, labelled: bool) -> dict[str, ImageSet]:
    """Read a list of paths, relative to the list's folder, with labels and parts where it has them."""
    table = read_table(path)
    header = list(table.columns)
    where = find_column(path, header, options.path_column, _PATH_NAMES, "path", needed=True)
    what = find_column(path, header, options.label_column, _LABEL_NAMES, "label", needed=labelled) if labelled else None
    split = find_column(path, header, options.split_column, _PART_NAMES, "split", needed=False) if labelled else None
    names = [cell.strip() for cell in table[where]]
    _check_cells(path, where, names)
    files = [path.parent / name for name in names]
    for row, file in enumerate(files, start=2):
        if not file.is_file():
            raise DataError(
                f"{path}: row {row}, column {where!r}: found {names[row - 2]!r}, and there is no file {file}; expected "
                "paths relative to the list's folder"
            )
    labels = None
    if what is not None:
        labels = [cell.strip() for cell in table[what]]
        if "" in labels:
            raise DataError(
                f"{path}: row {labels.index('') + 2}, column {what!r}: found no label ({labels.count('')} such rows), "
                "expected one in each row; fill them in, or leave these rows out"
            )
    reader: Reader = FileReader(files)
    whole = ImageSet(str(path), names, labels, list(range(len(names))), reader)
    return {"all": whole} if split is None else _divided(path, split, list(table[split]), whole)


def _divided(path: Path, column: str, cells: Sequence[str], whole: ImageSet) -> dict[str, ImageSet]:
    rows: dict[str, list[int]] = {}
    for i, cell in enumerate(cells):
        part = PARTS.get(cell.strip().lower())
        if part is None:
            raise DataError(f"{path}: row {i + 2}, column {column!r}: found {cell!r}, expected train, val or test")
        rows.setdefault(part, []).append(i)
    if "train" not in rows:
        raise DataError(f"{path}: column {column!r}: found {', '.join(rows)}, expected some rows of train")
    return {part: whole.select(which) for part, which in rows.items()}


def read_table(path: Path) -> pd.DataFrame:
    """Read a CSV list with a header, comma, semicolon or tab between cells, as text.

    Raises:
        DataError: It cannot be read, or has no row.
    """
    try:
        head = path.open(encoding="utf-8-sig").readline()
        delimiter = max(",;\t", key=head.count)
        table = pd.read_csv(path, sep=delimiter, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (OSError, ValueError) as error:  # pandas' parser errors are ValueErrors
        raise DataError(f"{path}: cannot be read ({error}); expected a CSV file with a header row") from error
    if table.empty:
        raise DataError(f"{path}: found 0 rows below the header, expected one for each image")
    return table


def find_column(
    path: Path, header: Sequence[str], given: str | None, known: Sequence[str], part: str, *, needed: bool
) -> Any:
    """Return the column that was named, or the first of the known names; None where none is needed.

    Raises:
        DataError: There is no such column; lists those there are.
    """
    if given is not None and given not in header:
        raise DataError(f"{path}: no column {given!r}{nearest(given, header)}; found {', '.join(header)}")
    name = given or next((name for word in known for name in header if name.strip().lower() == word), None)
    if name is None and needed:
        raise DataError(
            f"{path}: no column of {part}s; found {', '.join(header)}; expected one named {', '.join(known)}, or name "
            f"it with --data.{part}_column"
        )
    return name


def _check_cells(path: Path, column: str, names: Sequence[str]) -> None:
    seen: dict[str, int] = {}
    for row, name in enumerate(names, start=2):
        if first := seen.get(name):
            raise DataError(
                f"{path}: row {row}, column {column!r}: found {name!r}, which row {first} has too; expected each image "
                "once, with one label and in one part; remove one of the rows"
            )
        seen[name] = row
