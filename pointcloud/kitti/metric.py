"""KITTI's average precision as a torchmetrics metric."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from .evaluate import OVERLAPS, evaluate
from .objects import COLUMNS, DIFFICULTIES, Objects

# The classes that the rules speak of; objects of any other are kept as one kind, since only their size matters.
_KINDS = ("Car", "Van", "Pedestrian", "Person_sitting", "Cyclist", "DontCare", "Misc")


class KittiAP(Metric):
    """Average precision by KITTI's rules over the frames seen, `evaluate` on what all processes gathered.

    A frame that comes twice, as padded samplers give it, counts once.

    Args:
        overlaps: "strict" or "loose".

    Raises:
        ValueError: ``overlaps`` is another word.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    rows: list[Tensor]

    def __init__(self, overlaps: str = "strict") -> None:
        super().__init__()
        if overlaps not in OVERLAPS:
            raise ValueError(f"overlaps is {overlaps!r}, expected one of {', '.join(map(repr, OVERLAPS))}")
        self.overlaps = overlaps
        self.add_state("rows", default=[], dist_reduce_fx="cat")

    def update(self, frames: Sequence[int], labels: Sequence[Objects], detections: Sequence[Objects]) -> None:
        """Take some frames.

        Args:
            frames: Each frame's number, unique in the data.
            labels: Each frame's labels.
            detections: Each frame's detections.

        Raises:
            ValueError: The three differ in length.
        """
        if not len(frames) == len(labels) == len(detections):
            raise ValueError(
                f"frames, labels and detections have lengths {len(frames)}, {len(labels)} and {len(detections)}, "
                "expected the same"
            )
        for frame, pair in zip(frames, zip(labels, detections, strict=True), strict=True):
            self.rows.append(_encode(frame, pair).to(self.device))

    def compute(self) -> dict[str, Tensor]:
        """Return ``class/metric/R40-or-R11/difficulty`` -> percent; NaN where the rules give no value."""
        rows = dim_zero_cat(self.rows).cpu()
        pairs = [_decode(rows[rows[:, 0] == frame]) for frame in rows[:, 0].unique()]
        values = {}
        for name, metrics in evaluate(pairs, self.overlaps).items():
            for metric, averages in metrics.items():
                for recall in ("R40", "R11"):
                    for level, difficulty in enumerate(DIFFICULTIES):
                        value = averages[recall][level] if averages else float("nan")
                        values[f"{name}/{metric}/{recall}/{difficulty}"] = torch.tensor(value, device=self.device)
        return values


def _encode(frame: int, pair: tuple[Objects, Objects]) -> Tensor:
    """Return rows of (frame, side, kind, columns), with one of side -1 that marks the frame as seen."""
    kinds = {name.lower(): index for index, name in enumerate(_KINDS)}
    rows = [torch.tensor([[frame, -1.0, 0.0] + [0.0] * len(COLUMNS)], dtype=torch.float64)]
    for side, objects in enumerate(pair):
        kind = [kinds.get(name.lower(), len(_KINDS) - 1) for name in objects.names]
        head = torch.tensor([[frame, side, k] for k in kind], dtype=torch.float64).reshape(-1, 3)
        rows.append(torch.cat((head, objects.values), 1))
    return torch.cat(rows)


def _decode(rows: Tensor) -> tuple[Objects, Objects]:
    """Undo `_encode` for the first time that a frame came."""
    starts = torch.nonzero(rows[:, 1] == -1)[:, 0]
    once = rows[: int(starts[1])] if len(starts) > 1 else rows
    sides = [once[once[:, 1] == side] for side in (0, 1)]
    made = [Objects(tuple(_KINDS[int(kind)] for kind in side[:, 2]), side[:, 3:]) for side in sides]
    return made[0], made[1]
