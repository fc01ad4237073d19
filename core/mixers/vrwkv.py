"""Vision-RWKV's spatial mix: RWKV-4's attention in both directions, behind a shift of a pixel each way."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels import wkv4
from ..layouts import GridMixer
from ..parameters import undecayed, widen
from ..registry import register_mixer
from ..shift import pixel_shift


def bidirectional_wkv(k: Tensor, v: Tensor, w: Tensor, u: Tensor) -> Tensor:
    """Average values with weights that change with the distance on either side.

    ``y_t = (sum_{i != t} e^(-(|t - i| - 1) w / T + k_i) v_i + e^(u + k_t) v_t) / (the same without v)``, in O(T).

    Args:
        k: Logarithms of the weights, (B, T, C), any float dtype.
        v: Values, (B, T, C), k's dtype.
        w: Rate of decay over the whole sequence, (C,), of either sign: a negative one weighs what is far off more.
        u: Bonus of a token for itself, (C,).

    Returns:
        (B, T, C), k's dtype.

    Source:
        Duan et al., Vision-RWKV: efficient and scalable visual perception with RWKV-like architectures (2024), eq. 3
        and 4.
    """
    length = k.shape[1]
    keys, rate, bonus = widen(k), widen(w) / length, widen(u)
    # A weight that grows with the distance is a key that falls along the scan: that part of the rate moves into keys.
    steady = rate.clamp(min=0)
    place = torch.arange(length, device=k.device, dtype=keys.dtype).unsqueeze(1)
    both = torch.cat([keys, keys.flip(1)], -1)
    scanned = both + place * (rate - steady).repeat(2)
    # Behind the token the own one is left out: with the bonus w the scan's output one step earlier is just that sum's.
    y, _ = wkv4(
        scanned,
        torch.cat([widen(v), widen(v).flip(1)], -1),
        steady.repeat(2),
        torch.cat([bonus - rate + steady, steady]),
    )
    seen, behind = y.chunk(2, -1)
    behind = F.pad(behind[:, :-1], (0, 0, 1, 0)).flip(1)
    # Logarithms of the sums of weights on either side of a token, that of no token minus infinity.
    sums = torch.logcumsumexp(both + place * rate.repeat(2), 1)[:, :-1] - place[:-1] * rate.repeat(2)
    before, after = F.pad(sums, (0, 0, 1, 0), value=-math.inf).chunk(2, -1)
    share = torch.sigmoid(torch.logaddexp(before, bonus + keys) - after.flip(1))
    return torch.lerp(behind, seen, share).to(k.dtype)


def own_share(dim: int, power: float, more: float = 0.0) -> nn.Parameter:
    """Return the share of a pixel in its blend with its neighbours, ``(c / dim)^power + more``, as a parameter.

    Args:
        dim: Channels c.
        power: The exponent; 0 is all of the pixel.
        more: What every channel gets on top.
    """
    return undecayed((torch.arange(dim) / dim).view(1, 1, dim) ** power + more)


@register_mixer("vrwkv")
class VRWKV(GridMixer):
    """The spatial mix of Vision-RWKV: a bidirectional average of values along the raster of an image, behind a gate.

    With ``x^s = x * spatial_mix_s + shift(x) * (1 - spatial_mix_s)`` for s in k, v, r, where shift takes a quarter of
    the channels from each neighbour: ``k, v, r = W x^k, W x^v, W x^r``;
    ``y = W_o (sigmoid(r) * norm(bidirectional_wkv(k, v, spatial_decay, spatial_first)))``.

    Parameters carry the names of the authors' release and start at its values, but for the linear maps: those are
    orthogonal, key and receptance of gain 0.1. The release divides spatial_first by the number of places, too; here, as
    in the paper's equation, it is the bonus itself.

    Args:
        dim: Features of the input and of the output.
        layer: The layer's number in its network: what decays and what is shifted starts depending on it.
        layers: The network's layers.
        key_norm: Whether the average is normed.

    Source:
        Duan et al., Vision-RWKV (2024), section 3.2, equations 1 to 4; initial values: the authors' release.
    """

    def __init__(self, dim: int, layer: int = 0, layers: int = 1, key_norm: bool = False) -> None:
        super().__init__(dim)
        depth, rest = layer / max(layers - 1, 1), 1 - layer / layers
        channel = torch.arange(dim)
        self.spatial_decay = undecayed(-5 + 8 * (channel / max(dim - 1, 1)) ** (0.7 + 1.3 * depth))
        self.spatial_first = undecayed(math.log(0.3) + 0.5 * ((channel + 1) % 3 - 1))
        self.spatial_mix_k = own_share(dim, rest)
        self.spatial_mix_v = own_share(dim, rest, 0.3 * depth)
        self.spatial_mix_r = own_share(dim, 0.5 * rest)
        self.key, self.value, self.receptance, self.output = (nn.Linear(dim, dim, bias=False) for _ in range(4))
        for linear, gain in ((self.key, 0.1), (self.value, 1), (self.receptance, 0.1), (self.output, 1)):
            nn.init.orthogonal_(linear.weight, gain=gain)
        self.key_norm = nn.LayerNorm(dim) if key_norm else nn.Identity()

    def mix(self, x: Tensor) -> Tensor:
        """Mix x (B, *shape, dim), its places one after the other; the shift is along the last two axes of shape."""
        shifted = pixel_shift(x)
        x_k, x_v, x_r = (
            torch.lerp(shifted, x, mix.to(x.dtype)).flatten(1, -2)
            for mix in (self.spatial_mix_k, self.spatial_mix_v, self.spatial_mix_r)
        )
        y = bidirectional_wkv(self.key(x_k), self.value(x_v), self.spatial_decay, self.spatial_first)
        mixed: Tensor = self.output(torch.sigmoid(self.receptance(x_r)) * self.key_norm(y))
        return mixed.view(x.shape)
