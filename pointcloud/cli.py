"""``scanweave detect3d``."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from torch import Tensor

from ..core.errors import ConfigError
from ..core.spec import Session, TaskSpec, Verb
from .boxes import camera_to_lidar
from .data import Detect3dData
from .kitti.objects import read_objects
from .kitti.prepare import prepare
from .results import read_table
from .sources import Frame
from .task import Detection3d, draw_views

_SHOWN = (0.0, -40.0, -3.0, 70.4, 40.0, 1.0)


def prepare_data(session: Session) -> None:
    """Check a KITTI tree and write its lists, infos and the database of objects to ``--data.prepared``."""
    data = cast(Detect3dData, session.data)
    if data.root is None:
        raise ConfigError("made-up scenes need no preparation; name a KITTI tree by --data.root")
    made = prepare(data.root, data.prepared_folder)
    frames = ", ".join(f"{count} for {split}" for split, count in made.frames.items())
    objects = ", ".join(f"{count} {name}" for name, count in sorted(made.objects.items()))
    print(f"frames: {frames}\nobjects: {objects or 'none'}\nin the database: {sum(made.stored.values())}")
    print(f"prepared: {made.folder}")


def view(session: Session, frame: str, detections: str | None = None, point_range: list[float] | None = None) -> None:
    """Draw a labelled frame from above, and on its image where there is one.

    Args:
        session: The configured run.
        frame: The frame's name, as 000123.
        detections: Boxes to draw beside the labels: a ``predictions.csv``, or a folder of files in KITTI's format.
        point_range: Least x, y, z and greatest x, y, z of what is shown, metres.
    """
    if point_range is not None and len(point_range) != 6:
        raise ConfigError(
            f"--point_range has {len(point_range)} numbers, expected 6: least x, y, z and greatest x, y, z"
        )
    shown = cast(Detect3dData, session.data).find(frame)
    boxes = None if detections is None else _read_detections(Path(detections), shown)
    for path in draw_views(session.run.figures, shown, boxes, point_range or _SHOWN):
        print(f"drawn: {path}")


def _read_detections(path: Path, frame: Frame) -> Tensor:
    if path.suffix == ".csv":
        return read_table(path, frame.name)
    if frame.calibration is None:
        raise ConfigError(f"{path}: files in KITTI's format need calibrated frames; pass a predictions.csv")
    objects = read_objects(path / f"{frame.name}.txt", scored=True)
    return camera_to_lidar(objects.camera_boxes, frame.calibration)


DETECT3D = TaskSpec(
    name="detect3d",
    help="Find objects in point clouds: boxes in space.",
    module_class=Detection3d,
    data_class=Detect3dData,
    verbs={
        "prepare": Verb(prepare_data, "check a KITTI tree and write what training reads", configured=True),
        "view": Verb(view, "draw a frame with its boxes", configured=True),
    },
    trainer_defaults={"max_epochs": 20, "gradient_clip_val": 10.0},
    default_model=Detection3d,
)
