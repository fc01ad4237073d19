"""``scanweave classify-series``."""

from __future__ import annotations

from ...core.spec import TaskSpec
from . import task
from .module import PanelData
from .task import ScanClassification


def classifiers() -> list[str]:
    """Return the names that ``scanweave classify-series fit --model`` takes."""
    found = vars(task).values()
    return [one.__name__ for one in found if isinstance(one, type) and issubclass(one, ScanClassification)]


CLASSIFY_SERIES = TaskSpec(
    name="classify-series",
    help="Give whole series a class each, from .ts or CSV files.",
    module_class=ScanClassification,
    data_class=PanelData,
    default_model=ScanClassification,
    trainer_defaults={"max_epochs": 100, "gradient_clip_val": 1.0},
)
