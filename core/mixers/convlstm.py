"""ConvLSTM: an LSTM whose maps are convolutions, step by step; what other mixers of clips are compared with."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..conv import frame_conv2d
from ..errors import ConfigError
from ..layouts import ClipMixer
from ..parameters import widen
from ..registry import State, register_mixer


@register_mixer("convlstm")
class ConvLSTM(ClipMixer):
    """An LSTM at every pixel, whose gates see the pixels around.

    ``i, f, g, o = W_x * x_t + W_h * h_{t-1} + b``; ``c_t = sigmoid(f) c_{t-1} + sigmoid(i) tanh(g)``;
    ``h_t = sigmoid(o) tanh(c_t)``. Convolutions over a frame with zeros beyond its border; the input's are taken for
    all frames at once. No peepholes.

    Args:
        dim: Features of the input, of the state and of the output.
        kernel: Side of the kernels, odd.

    Raises:
        ConfigError: kernel is even.

    Source:
        Shi et al., Convolutional LSTM network (2015), equation 3, without its peepholes.
    """

    def __init__(self, dim: int, kernel: int = 3) -> None:
        super().__init__(dim, state_shapes={"h": (dim,), "c": (dim,)})
        if kernel < 1 or kernel % 2 == 0:
            raise ConfigError(f"convlstm: kernel is {kernel}, expected an odd number")
        bound = (dim * kernel**2) ** -0.5
        self.into = nn.Parameter(torch.empty(4 * dim, dim, kernel, kernel).uniform_(-bound, bound))
        self.hidden = nn.Parameter(torch.empty(4 * dim, dim, kernel, kernel).uniform_(-bound, bound))
        bias = torch.zeros(4, dim)
        bias[1] = 1.0  # remember, at first
        self.bias = nn.Parameter(bias.flatten())

    def mix(self, x: Tensor, state: State, reset: Tensor | None) -> tuple[Tensor, State]:
        """Run over the frames of x (B, T, H, W, dim); the state is h and c."""
        driven = widen(frame_conv2d(x, self.into, self.bias))
        h, c = state
        outputs = []
        for t, gates in enumerate(driven.unbind(1)):
            if reset is not None:
                starts = reset[:, t, None, None, None]
                h, c = h.masked_fill(starts, 0), c.masked_fill(starts, 0)
            i, f, g, o = (gates + widen(frame_conv2d(h.to(x.dtype), self.hidden))).chunk(4, -1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            outputs.append(h)
        return torch.stack(outputs, 1).to(x.dtype), (h, c)
