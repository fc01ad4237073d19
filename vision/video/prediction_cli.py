"""``scanweave video-predict``."""

from __future__ import annotations

from ...core.spec import TaskSpec
from .prediction import PredictionData, VideoPrediction

VIDEO_PREDICT = TaskSpec(
    name="video-predict",
    help="Predict the frames that follow: moving digits, and from any video on.",
    module_class=VideoPrediction,
    data_class=PredictionData,
    trainer_defaults={"max_epochs": 10, "gradient_clip_val": 1.0},
    default_model=VideoPrediction,
)
