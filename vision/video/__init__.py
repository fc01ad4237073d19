"""Video: recognition and prediction."""

from .layout import VideoSet
from .models import LRCN, TSLSTM, ScanClip, TemporalInception
from .module import VideoData
from .task import VideoClassification

__all__ = ["LRCN", "TSLSTM", "ScanClip", "TemporalInception", "VideoClassification", "VideoData", "VideoSet"]
