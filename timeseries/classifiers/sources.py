"""Find the files behind --data.path: a file, a folder of a train and a test file, or a set that comes with sktime."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from ...core.errors import DataError, nearest
from .csv_file import CsvOptions, read_csv
from .panel import Panel
from .ts_file import read_ts

_ENDINGS = (".ts", ".csv", ".tsv")
_TRAIN, _TEST = "_TRAIN", "_TEST"


def bundled_sets() -> dict[str, Path]:
    """Return the folders of the classification sets that come with sktime, by name."""
    import sktime.datasets

    root = Path(sktime.datasets.__file__).parent / "data"
    return {file.parent.name: file.parent for file in sorted(root.glob("*/*_TRAIN.ts"))}


def find_files(path: str) -> tuple[Path, Path | None]:
    """Find the file to train on and the one to test on.

    Args:
        path: A file, whose name may end in ``_TRAIN`` beside one that ends in ``_TEST``; a folder with such a pair or
            a single file; or the name of a set that comes with sktime.

    Returns:
        The training (or only) file, and the test file or None.

    Raises:
        DataError: There is no such file, folder or set, or the folder holds more than one.
    """
    found = Path(path)
    if not found.exists():
        sets = bundled_sets()
        if path not in sets:
            raise DataError(
                f"{path}: no such file, folder or bundled set{nearest(path, sets)}; expected a .ts or .csv file, a "
                f"folder of NAME_TRAIN and NAME_TEST files, or one of {', '.join(sets)}"
            )
        found = sets[path]
    if found.is_file():
        return found, _partner(found)
    files = sorted(file for file in found.iterdir() if file.suffix.lower() in _ENDINGS and file.is_file())
    train = [file for file in files if file.suffix == ".ts" and file.stem.upper().endswith(_TRAIN)]
    train = train or [file for file in files if file.stem.upper().endswith(_TRAIN)] or files
    if len(train) != 1:
        listed = ", ".join(file.name for file in files[:8]) or "no .ts and no .csv file"
        raise DataError(
            f"{found}: found {listed}; expected one file, or one pair NAME_TRAIN and NAME_TEST; name the file itself"
        )
    return train[0], _partner(train[0])


def _partner(train: Path) -> Path | None:
    """Return the test file beside a training file; None where the name does not end in _TRAIN or there is none."""
    if not train.stem.upper().endswith(_TRAIN):
        return None
    ending = _TEST.lower() if train.stem.endswith(_TRAIN.lower()) else _TEST
    partner = train.with_name(train.stem[: -len(_TRAIN)] + ending + train.suffix)
    return partner if partner.is_file() else None


def read_panel(path: Path, options: CsvOptions, *, labelled: bool) -> Panel:
    """Read a file by its ending.

    Args:
        path: A .ts file; any other is taken for CSV.
        options: How CSV files are read.
        labelled: Whether labels are needed; else they are not looked at.

    Returns:
        The series.

    Raises:
        DataError: The file cannot be read, or holds no labels where they are needed.
    """
    read = read_ts if path.suffix.lower() == ".ts" else partial(read_csv, options=options)
    return read(path, labelled=labelled)
