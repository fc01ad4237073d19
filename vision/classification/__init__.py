"""Classification of images: one label for each."""

from .augment import Augmentation, Preprocessing
from .dataset import ImageDataset
from .module import ClassifyData
from .readers import ImageSet
from .task import ImageClassification

__all__ = ["Augmentation", "ClassifyData", "ImageClassification", "ImageDataset", "ImageSet", "Preprocessing"]
