"""ConvS5: a state space over the frames of a clip whose input and output maps are convolutions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels import conv_scan
from ..conv import frame_conv2d
from ..diagonal import s5_start, zero_order_hold
from ..errors import ConfigError
from ..layouts import ClipMixer
from ..parameters import log_uniform, undecayed, widen
from ..registry import State, register_mixer


@register_mixer("convs5")
class ConvS5(ClipMixer):
    """S5 at every pixel, with convolutions to and from its states: in parallel over time, or frame by frame.

    ``h_t = exp(Lambda dt) h_{t-1} + Lambda^-1 (exp(Lambda dt) - 1) (B * x_t)``; ``y = gelu(2 Re(C * h) + D x)``;
    output ``y * sigmoid(W y)``. B and C are convolutions over a frame, with zeros beyond its border; the state's own
    kernel is 1 x 1 and diagonal. Conjugate pairs are stored once.

    Args:
        dim: Features of the input and of the output.
        d_state: Real states of a pixel, P; even.
        kernel: Side of both convolutions' kernels, odd.
        blocks: HiPPO blocks on the diagonal at the start; d_state / blocks must be even.
        dt_min: Smallest step at the start; steps are log-uniform. A state with step dt remembers about 2 / dt frames.
        dt_max: Largest step at the start.

    Raises:
        ConfigError: d_state is not a multiple of 2 * blocks, kernel is even, or not 0 < dt_min <= dt_max.

    Source:
        Smith et al., Convolutional state space models for long-range spatiotemporal modeling (2023), sections 3 and 4.
    """

    def __init__(
        self,
        dim: int,
        d_state: int = 64,
        kernel: int = 3,
        blocks: int = 1,
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
    ) -> None:
        super().__init__(dim, state_shapes={"scan": (d_state // 2, 2)})
        if kernel < 1 or kernel % 2 == 0:
            raise ConfigError(f"convs5: kernel is {kernel}, expected an odd number")
        if not 0 < dt_min <= dt_max:
            raise ConfigError(f"convs5: dt_min is {dt_min} and dt_max {dt_max}, expected 0 < dt_min <= dt_max")
        Lambda, B, C = s5_start("convs5", dim, d_state, blocks, (kernel, kernel))
        self.Lambda, self.B, self.C = undecayed(Lambda), nn.Parameter(B), nn.Parameter(C)
        self.D = undecayed(torch.randn(dim))
        self.log_step = undecayed(log_uniform((d_state // 2,), dt_min, dt_max))
        self.gate = nn.Linear(dim, dim)

    def mix(self, x: Tensor, state: State, reset: Tensor | None) -> tuple[Tensor, State]:
        """Run the state space over x (B, T, H, W, dim); the state is h as (real, imaginary) pairs."""
        decay, gain = zero_order_hold(self.Lambda, self.log_step)
        into = torch.view_as_real(gain.view(-1, 1, 1, 1) * torch.view_as_complex(widen(self.B)))
        out_of = torch.view_as_real(torch.view_as_complex(widen(self.C)).conj().resolve_conj())
        # A complex product is two real channels on either side of the convolution.
        driven = widen(frame_conv2d(x, into.movedim(-1, 1).flatten(0, 1))).unflatten(-1, (-1, 2))
        before = torch.view_as_complex(state[0].contiguous())
        h, last = conv_scan(decay, torch.view_as_complex(driven), initial_state=before, reset=reset)
        seen = torch.view_as_real(h).flatten(-2).to(x.dtype)
        y = F.gelu(frame_conv2d(seen, 2 * out_of.movedim(-1, 2).flatten(1, 2)) + self.D * x)
        return y * torch.sigmoid(self.gate(y)), (torch.view_as_real(last),)
