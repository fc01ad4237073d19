"""The linear RNNs of LION: what runs over a group of voxels, from (G, L, C) to (G, L, C)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from timm.layers import DropPath, LayerScale, Mlp, SwiGLU
from torch import Tensor, nn

from ..core.errors import ConfigError, nearest
from ..core.layouts import GridMixer, create_grid_mixer
from ..core.parameters import undecayed
from ..core.registry import Mixer, create_mixer, list_mixers
from ..core.shift import token_shift

MakeOperator = Callable[[int, float, int], nn.Module]


class _Mixing(nn.Module):
    """A registered mixer's output alone, of series or of a grid with one axis."""

    def __init__(self, mixer: Mixer | GridMixer) -> None:
        super().__init__()
        self.mixer = mixer

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.mixer(x)[0] if isinstance(self.mixer, Mixer) else self.mixer(x)
        return y


class PostNorm(nn.Module):
    """``x + norm(mixer(x))``.

    Args:
        dim: Features.
        mixer: A registered mixer.
        drop_path: Chance that a group skips the mixer in training.
    """

    def __init__(self, dim: int, mixer: Mixer | GridMixer, drop_path: float = 0.0) -> None:
        super().__init__()
        self.mixing, self.norm, self.drop_path = _Mixing(mixer), nn.LayerNorm(dim), DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Mix groups x (G, L, dim)."""
        return x + self.drop_path(self.norm(self.mixing(x)))


class PreNorm(nn.Module):
    """``x = x + scale * mixer(norm(x))``, then ``x = x + scale * feed_forward(norm(x))``.

    Args:
        dim: Features.
        mixer: A registered mixer.
        feed_forward: Maps (G, L, dim) to the same; None leaves it out.
        norm: Builds a norm from the width.
        scale: Initial value of a learned factor on each branch's features; None for no factor.
        backwards: Whether the mixer starts at a group's end.
        drop_path: Chance that a group skips a branch in training.
    """

    def __init__(
        self,
        dim: int,
        mixer: Mixer,
        feed_forward: nn.Module | None = None,
        norm: Callable[[int], nn.Module] = nn.LayerNorm,
        scale: float | None = None,
        backwards: bool = False,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.mixing, self.feed_forward, self.backwards = _Mixing(mixer), feed_forward, backwards
        count = 1 if feed_forward is None else 2
        self.norms = nn.ModuleList(norm(dim) for _ in range(count))
        self.scales = nn.ModuleList(nn.Identity() if scale is None else LayerScale(dim, scale) for _ in range(count))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Mix groups x (G, L, dim)."""
        y = self.norms[0](x)
        y = self.mixing(y.flip(1)).flip(1) if self.backwards else self.mixing(y)
        x = x + self.drop_path(self.scales[0](y))
        if self.feed_forward is None:
            return x
        return x + self.drop_path(self.scales[1](self.feed_forward(self.norms[1](x))))


class ChannelMix(nn.Module):
    """RWKV-6's feed-forward layer: ``sigmoid(W_r x_r) * W_v relu(W_k x_k)^2``, x_r and x_k blends with the step before.

    Args:
        dim: Features in and out.
        ratio: Features inside, in multiples of dim.

    Source:
        Peng et al., Eagle and Finch (2024), section 4.1 and the authors' release.
    """

    def __init__(self, dim: int, ratio: int = 4) -> None:
        super().__init__()
        ramp = 1 - (torch.arange(dim) / dim).view(1, 1, dim)
        self.time_maa_k, self.time_maa_r = undecayed(ramp.clone()), undecayed(ramp)
        self.key = nn.Linear(dim, ratio * dim, bias=False)
        self.receptance = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(ratio * dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (G, L, dim)."""
        previous, _ = token_shift(x, x.new_zeros(x.shape[0], x.shape[2]))
        change = previous - x
        k = self.key(x + change * self.time_maa_k).relu().square()
        y: Tensor = torch.sigmoid(self.receptance(x + change * self.time_maa_r)) * self.value(k)
        return y


def _rwkv(dim: int, drop_path: float, depth: int) -> nn.Module:
    mixer = create_mixer("rwkv6", dim, head_dim=dim // 4)
    return PreNorm(dim, mixer, ChannelMix(dim), scale=1e-5, drop_path=drop_path)


def _retnet(dim: int, drop_path: float, depth: int) -> nn.Module:
    mixer: Any = create_mixer("retention", dim, head_dim=dim // 2, expand_v=2, gate=False)
    feed_forward = Mlp(dim, 4 * dim)
    for last in (mixer.out_proj, feed_forward.fc2):
        _shrink(last, (2 * depth) ** -0.5)
    return PreNorm(dim, mixer, feed_forward, drop_path=drop_path)


def _xlstm(dim: int, drop_path: float, depth: int) -> nn.Module:
    def layer(backwards: bool) -> nn.Module:
        mixer: Any = create_mixer("mlstm", dim, head_dim=dim // 2, bias=True)
        _shrink(mixer.proj_down, 1 / (2 * depth))
        return PreNorm(dim, mixer, backwards=backwards, drop_path=drop_path)

    return nn.Sequential(layer(False), layer(True))


def _shrink(last: nn.Linear | nn.Conv2d, factor: float) -> None:
    """Let a residual branch begin smaller, so that many in a row begin near the identity."""
    with torch.no_grad():
        last.weight.mul_(factor)


def _ttt(dim: int, drop_path: float, depth: int) -> nn.Module:
    mixer = create_mixer("ttt_linear", dim, head_dim=dim // 4, mini_batch=16, learned_factor=True)
    inner = SwiGLU(dim, 2 * dim, bias=False)
    return PreNorm(dim, mixer, inner, norm=partial(nn.RMSNorm, eps=1e-6), drop_path=drop_path)


def _mamba(dim: int, drop_path: float, depth: int) -> nn.Module:
    return PostNorm(dim, create_grid_mixer("bimamba", dim, average=False), drop_path)


OPERATORS: dict[str, MakeOperator] = {
    "mamba": _mamba, "rwkv": _rwkv, "retnet": _retnet, "xlstm": _xlstm, "ttt": _ttt,
}  # fmt: skip
"""LION's own five: the mixers with the norms, feed-forward layers and head counts of its release."""


def create_operator(name: str, dim: int, drop_path: float = 0.0, depth: int = 1, **options: Any) -> nn.Module:
    """Build what runs over groups of voxels.

    Args:
        name: One of :data:`OPERATORS`, or any other registered mixer of series, which is then run as
            ``x + norm(mixer(x))``.
        dim: Features in and out.
        drop_path: Chance that a group skips a branch in training.
        depth: Operators in a row: RetNet's and xLSTM's branches begin the smaller, the more there are, by 1 / sqrt(2
            depth) as GPT-2's and by 1 / (2 depth) as xLSTM's own.
        options: The registered mixer's own arguments; LION's five take none.

    Returns:
        A module from (G, L, dim) to the same.

    Raises:
        ConfigError: The name or an argument is unknown.

    Source:
        Liu et al., LION: linear group RNN for 3D object detection in point clouds (2024), section 3.3. The five's
        arrangement is what the published parameter counts leave open: RetNet without an output gate, xLSTM with biases
        in every linear map, TTT with a SwiGLU of twice the width without biases and a learned factor for each step of a
        mini-batch.
    """
    if name in OPERATORS:
        if options:
            raise ConfigError(f"LION: operator {name!r} takes no options, but was given {', '.join(options)}")
        return OPERATORS[name](dim, drop_path, depth)
    if name not in list_mixers():
        known = list_operators()
        raise ConfigError(f"LION: no operator {name!r}{nearest(name, known)}; expected one of {', '.join(known)}")
    return PostNorm(dim, create_mixer(name, dim, **options), drop_path)


def list_operators() -> list[str]:
    """Return what :func:`create_operator` takes: LION's five, and the registered mixers of series."""
    return [*OPERATORS, *(name for name in list_mixers() if name not in OPERATORS)]
