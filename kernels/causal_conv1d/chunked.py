"""causal_conv1d in PyTorch's own operators: a sum over shifted inputs, or its convolution where no sequence starts."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import state_dtype


def _past(x: Tensor, taps: int, initial_state: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Return the inputs with those before the first step in front, (B, taps - 1 + L, C)."""
    wide = x.to(dtype)
    if initial_state is None:
        return F.pad(wide, (0, 0, taps - 1, 0))
    return torch.cat([initial_state.to(dtype), wide], 1)


def _running(reset: Tensor | None, taps: int) -> Tensor | None:
    """Return the number of the sequence that each input belongs to, (B, taps - 1 + L)."""
    return None if reset is None else F.pad(reset.cumsum(1), (taps - 1, 0))


def _sees(running: Tensor | None, tap: int, taps: int, length: int, dtype: torch.dtype) -> Tensor | None:
    """Return where a tap, 0 the oldest, meets an input of the step's own sequence, (B, L, 1); None for everywhere."""
    if running is None:
        return None
    return (running[:, tap : tap + length] == running[:, taps - 1 :]).unsqueeze(-1).to(dtype)


def _kept(running: Tensor | None, length: int, dtype: torch.dtype) -> Tensor | None:
    """Return which of the last inputs belong to the sequence that is running, (B, taps - 1, 1)."""
    return None if running is None else (running[:, length:] == running[:, -1:]).unsqueeze(-1).to(dtype)


def _masked(x: Tensor, mask: Tensor | None) -> Tensor:
    # A product would let NaN through.
    return x if mask is None else torch.where(mask.bool(), x, 0)


def _convolve(past: Tensor, filters: Tensor, bias: Tensor | None, running: Tensor | None, length: int) -> Tensor:
    taps = filters.shape[1]
    if running is None and length > 1:
        # conv2d takes the (B, L, C) memory as channels-last; conv1d would copy it.
        image = past.transpose(1, 2).unsqueeze(2)
        y = F.conv2d(image, filters[:, None, None], bias, groups=past.shape[2])
        return y.squeeze(2).transpose(1, 2)
    y = past.new_zeros(()) if bias is None else bias
    for tap in range(taps):
        seen = _masked(past[:, tap : tap + length], _sees(running, tap, taps, length, past.dtype))
        y = y + seen * filters[:, tap]
    return y


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, initial_state: Tensor | None, reset: Tensor | None, silu: bool
) -> tuple[Tensor, Tensor]:
    """Compute y and the last inputs; as :func:`.reference.causal_conv1d_reference`."""
    dtype, length, taps = state_dtype(x.dtype), x.shape[1], weight.shape[1]
    past, running = _past(x, taps, initial_state, dtype), _running(reset, taps)
    y = _convolve(past, weight.to(dtype), None if bias is None else bias.to(dtype), running, length)
    last = _masked(past[:, length:], _kept(running, length, dtype))
    return (F.silu(y) if silu else y).to(x.dtype).contiguous(), last.clone()


def backward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    reset: Tensor | None,
    silu: bool,
    dy: Tensor | None,
    dfinal: Tensor | None,
) -> tuple[Tensor, ...]:
    """Compute the gradients of x, weight, bias and initial state; empty where there is no such argument."""
    dtype, length, taps = state_dtype(x.dtype), x.shape[1], weight.shape[1]
    past, running, filters = _past(x, taps, initial_state, dtype), _running(reset, taps), weight.to(dtype)
    dpast, dfilters = torch.zeros_like(past), torch.zeros_like(filters)
    dbias = filters.new_zeros(0 if bias is None else bias.shape)
    if dy is not None:
        g = dy.to(dtype)
        if silu:
            y = _convolve(past, filters, None if bias is None else bias.to(dtype), running, length)
            gate = y.sigmoid()
            g = g * gate * (1 + y * (1 - gate))
        for tap in range(taps):
            own = _masked(g, _sees(running, tap, taps, length, dtype))
            dpast[:, tap : tap + length] += own * filters[:, tap]
            seen = _masked(past[:, tap : tap + length], _sees(running, tap, taps, length, dtype))
            dfilters[:, tap] = (own * seen).sum((0, 1))
        if bias is not None:
            dbias = g.sum((0, 1))
    if dfinal is not None:
        dpast[:, length:] += _masked(dfinal.to(dtype), _kept(running, length, dtype))
    dstate = dpast[:, : taps - 1].clone() if initial_state is not None else dpast.new_zeros(0)
    return (
        dpast[:, taps - 1 :].to(x.dtype).contiguous(),
        dfilters.to(weight.dtype),
        dbias if bias is None else dbias.to(bias.dtype),
        dstate,
    )
