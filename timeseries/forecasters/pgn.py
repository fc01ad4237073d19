"""PGN, the parallel gated network: every step sees all earlier ones through one linear map."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def conv_uniform(*shape: int, fan_in: int) -> nn.Parameter:
    """Return a parameter drawn as torch's convolutions draw weight and bias: U(-1/sqrt(fan_in), 1/sqrt(fan_in))."""
    bound = 1 / math.sqrt(fan_in)
    return nn.Parameter(torch.empty(*shape).uniform_(-bound, bound))


class _GatedBand(torch.autograd.Function):
    """``[H; g; c] = own values + joint shared``, ``y = sigmoid(g) H + (1 - sigmoid(g)) tanh(c)``.

    One function, because here elementwise passes over fresh memory cost more than the products: the activations
    overwrite the pre-activations, and the three gradients are written into one tensor.
    """

    @staticmethod
    def forward(ctx: Any, own: Tensor, joint: Tensor, values: Tensor, shared: Tensor) -> Tensor:
        channels, rows, _ = own.shape
        fused = torch.mm(joint, shared).view(channels, rows, -1).baddbmm_(own, values)
        history, gate, candidate = fused.view(channels, 3, -1).unbind(1)
        gate.sigmoid_()
        candidate.mul_(2).sigmoid_().mul_(2).sub_(1)  # tanh, at a quarter of the time of torch.tanh on a CPU
        y = torch.lerp(candidate, history, gate)
        ctx.save_for_backward(own, joint, values, shared, fused, y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        own, joint, values, shared, fused, y = ctx.saved_tensors
        channels, rows, count = fused.shape
        _, gate, candidate = fused.view(channels, 3, -1).unbind(1)
        d_fused = torch.empty_like(fused)
        d_history, d_gate, d_candidate = d_fused.view(channels, 3, -1).unbind(1)
        torch.mul(dy, gate, out=d_history)
        rest = dy - d_history
        torch.mul(rest, y - candidate, out=d_gate)
        torch.mul(rest, torch.addcmul(_one(rest), candidate, candidate, value=-1), out=d_candidate)
        flat = d_fused.view(channels * rows, count)
        d_values = own.mT @ d_fused if ctx.needs_input_grad[2] else None
        d_shared = joint.mT @ flat if ctx.needs_input_grad[3] else None
        return d_fused @ values.mT, flat @ shared.mT, d_values, d_shared


def _one(like: Tensor) -> Tensor:
    return torch.ones((), dtype=like.dtype, device=like.device)


class PGN(nn.Module):
    """Gated fusion of a step and its history, all steps at once.

    ``H_t = W [x_{t-w}, ..., x_{t-1}] + b`` with zeros before the start, ``[g_t, c_t] = W_g [x_t, H_t] + b_g``,
    ``y_t = sigmoid(g_t) H_t + (1 - sigmoid(g_t)) tanh(c_t)``.

    Each channel has weights of its own and reads its value together with the inputs that all channels share (the
    calendar, covariates). H is linear in x, so the gates are too: the three maps are composed and written as one product
    with a banded matrix over all steps. The shared inputs are stored once for all channels.

    Args:
        length: Steps L.
        hidden_size: Features d of H, c and y.
        channels: Independent channels C.
        shared: Inputs S that all channels share.
        window: Steps w of history that a step sees; all earlier ones by default.

    Source: Jia et al. 2024, PGN: The RNN's New Successor is Effective for Long-Range Time Series Forecasting, sec. 3.
    """

    def __init__(
        self, length: int, hidden_size: int, *, channels: int = 1, shared: int = 0, window: int | None = None
    ) -> None:
        super().__init__()
        self.length, self.hidden_size, self.channels, self.shared = length, hidden_size, channels, shared
        self.window = max(1, min(window or length - 1, length - 1))
        inputs = 1 + shared
        history_fan, gate_fan = inputs * self.window, inputs + hidden_size
        self.history_weight = conv_uniform(channels, hidden_size, inputs, self.window, fan_in=history_fan)
        self.history_bias = conv_uniform(channels, hidden_size, fan_in=history_fan)
        self.gate_weight = conv_uniform(channels, 2 * hidden_size, gate_fan, fan_in=gate_fan)
        self.gate_bias = conv_uniform(channels, 2 * hidden_size, fan_in=gate_fan)
        self._taps: Tensor
        self.register_buffer("_taps", self._tap_table(), persistent=False)

    def forward(self, values: Tensor, shared: Tensor) -> Tensor:
        """Run all steps of N sequences.

        Args:
            values: (C, L, N) the channels' own values.
            shared: (S, L, N) inputs that all channels share.

        Returns:
            (C, d, L, N).
        """
        channels, length, count = values.shape
        band, bias = self._band()
        own = band[..., :length].contiguous()
        joint = torch.cat((band[..., length:], bias.unsqueeze(-1)), dim=-1).view(-1, self.shared * length + 1)
        known = torch.cat((shared.reshape(-1, count), shared.new_ones(1, count)))
        return _GatedBand.apply(own, joint, values, known).view(channels, self.hidden_size, length, count)

    def _band(self) -> tuple[Tensor, Tensor]:
        """Compose the maps from all steps to H, g and c of each: (C, 3 d L, (1 + S) L), and their bias (C, 3 d L)."""
        channels, d, inputs, window = self.history_weight.shape
        now, past = self.gate_weight[..., :inputs], self.gate_weight[..., inputs:]
        gates = torch.bmm(past, self.history_weight.view(channels, d, -1)).view(channels, 2 * d, inputs, window)
        gates = torch.cat((gates, now.unsqueeze(-1)), dim=-1)
        taps = F.pad(torch.cat((F.pad(self.history_weight, (0, 1)), gates), dim=1), (1, 0))
        taps = taps.view(channels * 3 * d, -1)
        band = taps.gather(1, self._taps.expand(len(taps), -1))
        bias = torch.baddbmm(self.gate_bias.unsqueeze(-1), past, self.history_bias.unsqueeze(-1)).squeeze(-1)
        bias = torch.cat((self.history_bias, bias), dim=1).repeat_interleave(self.length, dim=1)
        return band.view(channels, 3 * d * self.length, inputs * self.length), bias

    def _tap_table(self) -> Tensor:
        """Return the place of each entry of the band among a feature's taps: place 0 is a zero, then oldest first."""
        step = torch.arange(self.length)
        lag = step[:, None] - step[None, :]
        place = torch.where((lag >= 0) & (lag <= self.window), self.window - lag + 1, 0)
        offset = (self.window + 2) * torch.arange(1 + self.shared)
        return (place[:, None, :] + offset[None, :, None]).reshape(1, -1)
