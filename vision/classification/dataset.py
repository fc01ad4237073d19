"""Images as samples of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image
from torch.utils.data import Dataset

from .augment import Preprocessing, Transform
from .readers import ImageSet


class ImageDataset(Dataset[dict[str, Any]]):
    """Decoded and transformed images: ``image`` (C, S, S) float32, ``index`` and, where known, ``target``.

    Args:
        images: The images.
        targets: (N,) classes; None where unknown.
        preprocessing: Decides about grey or RGB.
        transform: From the decoded image to the tensor.
        max_pixels: Most pixels of an image.
    """

    def __init__(
        self,
        images: ImageSet,
        targets: Sequence[int] | None,
        preprocessing: Preprocessing,
        transform: Transform,
        max_pixels: int,
    ) -> None:
        self.images, self.targets = images, targets
        self.preprocessing, self.transform, self.max_pixels = preprocessing, transform, max_pixels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        picture: Image.Image = self.preprocessing.mode(self.images.picture(index, self.max_pixels))
        sample = {"image": self.transform(picture), "index": index}
        if self.targets is not None:
            sample["target"] = self.targets[index]
        return sample
