"""Folders of clouds with boxes, for tests."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np

BOX = [8.0, 1.0, 0.5, 1.0, 0.8, 1.2, 0.3]
"""The first barrel: centre, length, width, height, heading."""


def write_folder(root: Path, frames: int, *, as_table: bool = False, seed: int = 0) -> Path:
    """Write clouds with a barrel each, and a pallet in every other; the first frame has no object."""
    made = np.random.default_rng(seed)
    (root / "points").mkdir(parents=True)
    rows = []
    for number in range(frames):
        name = f"f{number:02d}"
        ground = np.column_stack((made.uniform(0, 20, 300), made.uniform(-10, 10, 300), np.zeros(300), np.zeros(300)))
        boxes = []
        if number:
            shift = made.uniform(-3, 3, 2)
            boxes.append(("Barrel", [BOX[0] + shift[0], BOX[1] + shift[1], *BOX[2:]]))
        if number % 2:
            boxes.append(("Pallet", [14.0 + made.uniform(-1, 1), -5.0, 0.2, 1.2, 0.9, 0.4, 0.0]))
        parts = [ground]
        for _, box in boxes:
            inside = made.uniform(-0.45, 0.45, (60, 3)) * box[3:6] + box[:3]
            parts.append(np.column_stack((inside, np.ones(60))))
        np.concatenate(parts).astype("<f4").tofile(root / "points" / f"{name}.bin")
        rows.append((name, boxes))
    if as_table:
        with (root / "boxes.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(("frame", "class", "x", "y", "z", "length", "width", "height", "heading"))
            table.writerows((name, kind, *box) for name, boxes in rows for kind, box in boxes)
    else:
        (root / "labels").mkdir()
        for name, boxes in rows:
            listed = [{"class": kind, "box": box} for kind, box in boxes]
            (root / "labels" / f"{name}.json").write_text(json.dumps(listed))
    return root
