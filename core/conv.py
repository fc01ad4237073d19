"""Convolution of the frames of a clip."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def frame_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolve every frame, with zeros beyond its border.

    Args:
        x: Frames (..., H, W, C), any number of axes before them.
        weight: (D, C, kH, kW) with kH and kW odd, as in ``torch.nn.Conv2d``; taken in x's dtype.
        bias: (D,), or None.

    Returns:
        (..., H, W, D), contiguous.
    """
    padding = weight.shape[2] // 2, weight.shape[3] // 2
    # The channels stay last in memory, which is how oneDNN and cuDNN like them best.
    images = x.flatten(0, -4).movedim(-1, 1)
    y = F.conv2d(images, weight.to(x.dtype), None if bias is None else bias.to(x.dtype), padding=padding)
    return y.movedim(1, -1).contiguous().unflatten(0, x.shape[:-3])
