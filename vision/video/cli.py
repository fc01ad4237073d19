"""``scanweave video``."""

from __future__ import annotations

from ...core.spec import TaskSpec
from .models import LRCN
from .module import VideoData
from .task import VideoClassification

VIDEO = TaskSpec(
    name="video",
    help="Give videos a class each, from folders and lists of videos or of frames.",
    module_class=VideoClassification,
    data_class=VideoData,
    trainer_defaults={"max_epochs": 20, "gradient_clip_val": 1.0},
    default_model=LRCN,
)
