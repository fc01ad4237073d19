"""Video: recognition and prediction."""

from .layout import VideoSet
from .models import LRCN, TSLSTM, ScanClip, TemporalInception
from .module import VideoData
from .prediction import PredictionData, VideoPrediction
from .predictor import FramePredictor
from .task import VideoClassification

__all__ = [
    "LRCN",
    "TSLSTM",
    "FramePredictor",
    "PredictionData",
    "ScanClip",
    "TemporalInception",
    "VideoClassification",
    "VideoData",
    "VideoPrediction",
    "VideoSet",
]
