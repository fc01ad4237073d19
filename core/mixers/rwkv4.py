"""RWKV-4: the time mix of the first published RWKV."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ...kernels import WKV4State, wkv4
from ..parameters import undecayed, widen
from ..registry import Mixer, State, register_mixer
from ..shift import token_shift


@register_mixer("rwkv4")
class RWKV4(Mixer):
    """Attention without queries: a decaying average of values, weighted by exponentials of keys, behind a gate.

    With ``x^s = x_t * time_mix_s + x_{t-1} * (1 - time_mix_s)`` for s in k, v, r: ``k, v, r = W x^k, W x^v, W x^r``;
    ``y = W_o (sigmoid(r) * wkv4(k, v, exp(time_decay), time_first))``.

    Parameters carry the names of the authors' release and start at its values, with these choices. What depends there
    on the layer's depth starts as in the first layer. ``key``, ``receptance`` and ``output``, which start there at
    exactly zero, are orthogonal (the first two of gain 0.1), so that each parameter of a mixer used alone has a
    gradient.

    Args:
        dim: Features of the input and of the output.

    Source:
        Peng et al., RWKV: Reinventing RNNs for the transformer era (2023), section 3.1, equations 11 to 17, and
        appendix E for the initial values.
    """

    def __init__(self, dim: int) -> None:
        names = ("shift", "numerator", "denominator", "maximum")
        super().__init__(dim, state_shapes=dict.fromkeys(names, (dim,)))
        channel = torch.arange(dim)
        self.time_decay = undecayed(-5 + 8 * (channel / max(dim - 1, 1)) ** 0.7)
        self.time_first = undecayed(math.log(0.3) + 0.5 * ((channel + 1) % 3 - 1))
        place = (channel / dim)[None, None]
        self.time_mix_k, self.time_mix_v = undecayed(place.clone()), undecayed(place.clone())
        self.time_mix_r = undecayed(place.sqrt())
        self.key, self.value, self.receptance, self.output = (nn.Linear(dim, dim, bias=False) for _ in range(4))
        for layer, gain in ((self.key, 0.1), (self.value, 1), (self.receptance, 0.1), (self.output, 1)):
            nn.init.orthogonal_(layer.weight, gain=gain)

    def initial_state(
        self, batch_size: int, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
    ) -> State:
        """Return the state before the first step: empty sums, whose largest exponent is minus infinity."""
        *sums, maximum = super().initial_state(batch_size, device, dtype)
        return *sums, torch.full_like(maximum, -math.inf)

    def mix(self, x: Tensor, state: State, reset: Tensor | None) -> tuple[Tensor, State]:
        """Run the time mix; the state is the last input and the scan's numerator, denominator and largest exponent."""
        shift_state, *scan_state = state
        before, shift_state = token_shift(x, shift_state, reset)
        x_k, x_v, x_r = (x * mix + before * (1 - mix) for mix in (self.time_mix_k, self.time_mix_v, self.time_mix_r))
        y, scan = wkv4(
            self.key(x_k),
            self.value(x_v),
            widen(self.time_decay).exp(),
            widen(self.time_first),
            initial_state=WKV4State(*scan_state),
            reset=reset,
        )
        return self.output(torch.sigmoid(self.receptance(x_r)) * y), (shift_state, *scan)
