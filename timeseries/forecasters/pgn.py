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
        parts = fused.view(channels, 3, -1)
        history, gate, candidate = parts[:, 0], parts[:, 1], parts[:, 2]
        gate.sigmoid_()
        candidate.mul_(2).sigmoid_().mul_(2).sub_(1)  # tanh through the sigmoid, in place
        y = torch.lerp(candidate, history, gate)
        ctx.save_for_backward(own, joint, values, shared, fused, y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        own, joint, values, shared, fused, y = ctx.saved_tensors
        channels, rows, count = fused.shape
        parts = fused.view(channels, 3, -1)
        gate, candidate = parts[:, 1], parts[:, 2]
        d_fused = torch.empty_like(fused)
        d_parts = d_fused.view(channels, 3, -1)
        d_history = torch.mul(dy, gate, out=d_parts[:, 0])
        rest = dy - d_history
        torch.mul(rest, y - candidate, out=d_parts[:, 1])
        torch.addcmul(rest, rest * candidate, candidate, value=-1, out=d_parts[:, 2])
        flat = d_fused.view(channels * rows, count)
        d_values = own.mT @ d_fused if ctx.needs_input_grad[2] else None
        d_shared = joint.mT @ flat if ctx.needs_input_grad[3] else None
        return d_fused @ values.mT, flat @ shared.mT, d_values, d_shared


class PGN(nn.Module):
    """Gated fusion of a step and its history, all steps at once.

    ``H_t = W [x_{t-w}, ..., x_{t-1}] + b`` with zeros before the start, ``[g_t, c_t] = W_g [x_t, H_t] + b_g``,
    ``y_t = sigmoid(g_t) H_t + (1 - sigmoid(g_t)) tanh(c_t)``.

    Each channel has weights of its own and reads its value together with the inputs that all channels share (the
    calendar, covariates). H is linear in x, so the gates are too: the three maps are composed and written as one
    product with a banded matrix over all steps. The shared inputs are stored once for all channels.

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
        self.history_weight = conv_uniform(channels, hidden_size, inputs * self.window, fan_in=history_fan)
        self.history_bias = conv_uniform(channels, hidden_size, 1, fan_in=history_fan)
        self.gate_weight = conv_uniform(channels, 2 * hidden_size, gate_fan, fan_in=gate_fan)
        self.gate_bias = conv_uniform(channels, 2 * hidden_size, 1, fan_in=gate_fan)
        own, joint = self._tap_tables()
        self._own: Tensor
        self._joint: Tensor
        self.register_buffer("_own", own, persistent=False)
        self.register_buffer("_joint", joint, persistent=False)

    def forward(self, values: Tensor, shared: Tensor) -> Tensor:
        """Run all steps of N sequences.

        Args:
            values: (C, L, N) the channels' own values.
            shared: (S, L, N) inputs that all channels share.

        Returns:
            (C, d, L, N).
        """
        channels, length, count = values.shape
        own, joint = self._bands()
        known = torch.cat((shared.reshape(-1, count), shared.new_ones(1, count)))
        return _GatedBand.apply(own, joint, values, known).view(channels, self.hidden_size, length, count)

    def _bands(self) -> tuple[Tensor, Tensor]:
        """Compose the maps from all steps to H, g and c of each, and spread them to banded matrices.

        Returns:
            (C, 3 d L, L) for the channels' values, and (C 3 d L, S L + 1) for the shared inputs and the constant 1.
        """
        length, inputs = self.length, 1 + self.shared
        now, past = self.gate_weight.split((inputs, self.hidden_size), dim=2)
        history = torch.cat((self.history_weight, self.history_bias), dim=2)
        bias = F.pad(self.gate_bias, (inputs * self.window, 0))
        gates = torch.cat((torch.baddbmm(bias, past, history), now), dim=2)
        taps = F.pad(torch.cat((F.pad(history, (0, inputs)), gates), dim=1), (1, 0)).flatten(0, 1)
        own = taps.gather(1, self._own.expand(len(taps), -1)).view(self.channels, -1, length)
        joint = taps.gather(1, self._joint.expand(len(taps), -1)).view(-1, self.shared * length + 1)
        return own, joint

    def _tap_tables(self) -> tuple[Tensor, Tensor]:
        """Return where each entry of a feature's two bands, row by row, stands among its taps.

        The taps: a zero; w of each input, oldest first; the bias; each input's present step.
        """
        window, inputs, step = self.window, 1 + self.shared, torch.arange(self.length)
        lag = (step[:, None] - step[None, :])[:, None, :]
        feature = torch.arange(inputs)[None, :, None]
        bias = 1 + inputs * window
        earlier = torch.where((lag >= 1) & (lag <= window), 1 + window * (feature + 1) - lag, 0)
        place = torch.where(lag == 0, bias + 1 + feature, earlier)
        joint = torch.cat((place[:, 1:].flatten(1), torch.full((self.length, 1), bias)), dim=1)
        return place[:, 0].reshape(1, -1), joint.reshape(1, -1)
