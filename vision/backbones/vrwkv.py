"""Vision-RWKV: averages with weights that fade with the distance in both directions, behind shifts by a pixel."""

from __future__ import annotations

import re
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath, trunc_normal_
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from ...core.errors import ConfigError
from ...core.mixers.vrwkv import VRWKV as SpatialMix
from ...core.mixers.vrwkv import own_share
from ...core.parameters import mark_undecayed
from ...core.shift import pixel_shift
from . import entry
from .entry import config, create
from .isotropic import Isotropic, Site, Size


class ChannelMix(nn.Module):
    """The feed-forward layer of Vision-RWKV, behind a shift by a pixel each way.

    With ``x^s = x * spatial_mix_s + shift(x) * (1 - spatial_mix_s)`` for s in k, r:
    ``sigmoid(W_r x^r) * W_v norm(relu(W_k x^k)^2)``.

    Args:
        dim: Features.
        layer: The layer's number in its network: how much is shifted starts depending on it.
        layers: The network's layers.
        ratio: Hidden features in multiples of dim.
        key_norm: Whether the hidden features are normed.

    Source:
        Duan et al., Vision-RWKV (2024), section 3.2, equations 5 and 6; initial values: the authors' release.
    """

    def __init__(self, dim: int, layer: int, layers: int, ratio: float = 4.0, key_norm: bool = False) -> None:
        super().__init__()
        hidden = int(ratio * dim)
        self.spatial_mix_k, self.spatial_mix_r = (own_share(dim, 1 - layer / layers) for _ in range(2))
        self.key = nn.Linear(dim, hidden, bias=False)
        self.receptance = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(hidden, dim, bias=False)
        self.key_norm = nn.LayerNorm(hidden) if key_norm else nn.Identity()
        for linear in (self.key, self.receptance, self.value):
            trunc_normal_(linear.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Map a grid (B, H, W, dim)."""
        shifted = pixel_shift(x)
        x_k, x_r = (torch.lerp(shifted, x, mix.to(x.dtype)) for mix in (self.spatial_mix_k, self.spatial_mix_r))
        y: Tensor = torch.sigmoid(self.receptance(x_r)) * self.value(self.key_norm(F.relu(self.key(x_k)).square()))
        return y


class VRWKVBlock(nn.Module):
    """Residual block of the spatial mix and :class:`ChannelMix`, with a norm before or behind each.

    Args:
        site: Where it stands; the first block norms its input.
        layers: The network's blocks.
        mlp_ratio: Hidden features of the channel mix in multiples of the width.
        post_norm: Whether the norms stand behind what they belong to.
        key_norm: Whether the averages and the hidden features are normed.
        layer_scale: What the branches' gains start at; None leaves them out.
    """

    def __init__(
        self, site: Site, layers: int, mlp_ratio: float, post_norm: bool, key_norm: bool, layer_scale: float | None
    ) -> None:
        super().__init__()
        dim, self.post_norm = site.dim, post_norm
        self.ln0 = nn.LayerNorm(dim) if site.number == 0 else nn.Identity()
        self.ln1, self.ln2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.att = SpatialMix(dim, site.number, layers, key_norm)
        self.ffn = ChannelMix(dim, site.number, layers, mlp_ratio, key_norm)
        self.drop_path = DropPath(site.drop_path) if site.drop_path else nn.Identity()
        self.gamma1, self.gamma2 = (
            None if layer_scale is None else mark_undecayed(nn.Parameter(torch.full((dim,), layer_scale)))
            for _ in range(2)
        )

    def forward(self, x: Tensor, size: Size) -> Tensor:
        """Mix tokens x (B, H W, dim) of a grid (H, W)."""
        x = self.ln0(x.unflatten(1, size))
        for norm, part, gain in ((self.ln1, self.att, self.gamma1), (self.ln2, self.ffn, self.gamma2)):
            y = norm(part(x)) if self.post_norm else part(norm(x))
            x = x + self.drop_path(y if gain is None else gain * y)
        return x.flatten(1, 2)


class VRWKV(Isotropic):
    """Vision-RWKV: blocks of a bidirectional weighted average and a channel mix, learned positions, the patches' mean.

    Args:
        depth: Blocks.
        mlp_ratio: Hidden features of the channel mixes in multiples of the width.
        post_norm: Whether norms stand behind the mixes, not before them.
        key_norm: Whether the averages and the hidden features are normed besides.
        layer_scale: What the branches' gains start at; None leaves them out.
        kwargs: As of :class:`Isotropic`.

    Source:
        Duan et al., Vision-RWKV: efficient and scalable visual perception with RWKV-like architectures (2024), section
        3 and table 1; norms and gains of each size: the authors' release.
    """

    def __init__(
        self,
        *,
        depth: int = 12,
        mlp_ratio: float = 4.0,
        post_norm: bool = False,
        key_norm: bool = False,
        layer_scale: float | None = None,
        **kwargs: Any,
    ) -> None:
        def block(site: Site) -> nn.Module:
            return VRWKVBlock(site, depth, mlp_ratio, post_norm, key_norm, layer_scale)

        super().__init__(block, depth=depth, **kwargs)


def checkpoint_filter_fn(state_dict: dict[str, Any], model: VRWKV) -> dict[str, Tensor]:
    """Return weights of Vision-RWKV's release under the names used here; this package's own stay as they are.

    The release divides a token's bonus for itself by the number of tokens, as the paper does not: so are its weights.

    Args:
        state_dict: The release's file, or a state of a model of this package.
        model: What is to load it.

    Returns:
        The weights for ``model.load_state_dict``.

    Raises:
        ConfigError: The file's network has other norms, or a head of two layers.
    """
    weights = entry.unwrapped(state_dict)
    if not any(name.startswith("backbone.") for name in weights):
        return entry.checkpoint_filter_fn(weights, model)
    tokens = weights["backbone.pos_embed"].shape[1]
    renamed = {}
    for name, value in weights.items():
        if name.startswith(("head.0.", "head.2.")):
            if model.num_classes:
                raise ConfigError(
                    f"vrwkv: the file has {name}, one layer of a head of two; the model's head has one: "
                    "build it with num_classes=0"
                )
            continue
        name = re.sub(r"^head\.fc\.", "head.", name.removeprefix("backbone."))
        name = re.sub(r"^ln1\.", "norm.", name.replace("patch_embed.projection.", "patch_embed.proj."))
        renamed[name] = value / tokens if name.endswith(".spatial_first") else value
    own = model.state_dict()
    for option, part in (("key_norm", "att.key_norm.weight"), ("layer_scale", "gamma1")):
        there, here = f"layers.0.{part}" in renamed, f"blocks.0.{part}" in own
        if there != here:
            with_it, without = ("file", "model") if there else ("model", "file")
            raise ConfigError(
                f"vrwkv: the {with_it}'s blocks have {part}, the {without}'s have not: "
                f"build the model with another {option}"
            )
    return entry.checkpoint_filter_fn(renamed, model)


_NAMES = ("vrwkv_tiny", "vrwkv_small", "vrwkv_base", "vrwkv_large")
default_cfgs = generate_default_cfgs({name: config() for name in _NAMES})


@register_model
def vrwkv_tiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """VRWKV-T: width 192, 6.2 M parameters."""
    return create(VRWKV, "vrwkv_tiny", pretrained, checkpoint_filter_fn, **{"embed_dim": 192, **kwargs})


@register_model
def vrwkv_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """VRWKV-S: width 384, 23.8 M parameters."""
    return create(VRWKV, "vrwkv_small", pretrained, checkpoint_filter_fn, **{"embed_dim": 384, **kwargs})


_DEEP = {"post_norm": True, "key_norm": True, "layer_scale": 1e-5}


@register_model
def vrwkv_base(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """VRWKV-B: width 768, norms behind the mixes and inside them, 93.7 M parameters.

    The release's configuration has no norms inside: its weights want ``key_norm=False``.
    """
    given = {"embed_dim": 768, **_DEEP, **kwargs}
    return create(VRWKV, "vrwkv_base", pretrained, checkpoint_filter_fn, **given)


@register_model
def vrwkv_large(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """VRWKV-L: width 1024, 24 blocks, norms as VRWKV-B; the release's head of two layers counts 5 M more."""
    given = {"embed_dim": 1024, "depth": 24, **_DEEP, **kwargs}
    return create(VRWKV, "vrwkv_large", pretrained, checkpoint_filter_fn, **given)
