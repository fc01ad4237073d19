"""Convolutions beside recurrences: the short causal one in front of many, and one over the frames of a clip."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .parameters import widen


def causal_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor, reset: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Convolve each channel over its own past.

    ``y_t = bias + sum_{j=0}^{W-1} weight[W-1-j] * x_{t-j}``, where x before the first step is ``state``.

    Args:
        x: Input (B, L, C).
        weight: One filter per channel (C, W); the last tap meets the present step, as in ``torch.nn.Conv1d``.
        bias: (C,), or None.
        state: The W - 1 inputs before x, oldest first, (B, W - 1, C); zeros at the start of a sequence.
        reset: (B, L) bool; where True a new sequence starts: it sees no step before its own first.

    Returns:
        y: (B, L, C), in x's dtype.
        state: The last W - 1 inputs of the sequence now running, (B, W - 1, C), in the given state's dtype.

    Source:
        Gu and Dao, Mamba (2023), section 3.4 (the convolution of its block).
    """
    taps, length = weight.shape[1], x.shape[1]
    past = torch.cat([state.to(x.dtype), x], 1)
    if reset is None and length > 1:
        # conv2d takes the (B, L, C) memory as channels-last; conv1d would copy it.
        image = past.transpose(1, 2).unsqueeze(2)
        kernel = weight[:, None, None].to(x.dtype)
        y = F.conv2d(image, kernel, None if bias is None else bias.to(x.dtype), groups=x.shape[2])
        return y.squeeze(2).transpose(1, 2), past[:, length:].to(state.dtype)
    sequence = None if reset is None else F.pad(reset.cumsum(1), (taps - 1, 0))
    wide, filters = widen(past), widen(weight).to(widen(x).dtype)
    y = torch.zeros_like(wide[:, :length]) if bias is None else bias.to(wide.dtype).expand(x.shape)
    for tap in range(taps):
        seen = wide[:, tap : tap + length]
        if sequence is not None:
            seen = seen * (sequence[:, tap : tap + length] == sequence[:, taps - 1 :]).unsqueeze(-1)
        y = torch.addcmul(y, seen, filters[:, tap])
    last = past[:, length:].to(state.dtype)
    if sequence is not None:
        last = last * (sequence[:, length:] == sequence[:, -1:]).unsqueeze(-1)
    return y.to(x.dtype), last


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
