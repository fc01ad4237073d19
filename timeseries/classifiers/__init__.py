"""Classification and regression of whole series: one label or one value for each."""

from .module import PanelData
from .network import PanelNetwork
from .panel import Panel, PanelDataset, collate
from .sources import bundled_sets
from .task import PanelTask, ScanClassification, ScanRegression

__all__ = [
    "Panel",
    "PanelData",
    "PanelDataset",
    "PanelNetwork",
    "PanelTask",
    "ScanClassification",
    "ScanRegression",
    "bundled_sets",
    "collate",
]
