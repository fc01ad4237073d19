"""Vision-LSTM (ViL): mLSTM blocks that read the patches from the top left and from the bottom right in turn."""

from __future__ import annotations

import re
from typing import Any

import torch
import torch.nn.functional as F
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from ...core.errors import ConfigError
from ...core.heads import count_heads
from ...core.mixers.mlstm import BlockLinear, MLSTMCell
from ...core.parameters import undecayed, widen
from ...kernels import MLSTMState
from . import entry
from .entry import config, create
from .isotropic import Isotropic, Site, Size, TokenBlock


class ViLLayer(nn.Module):
    """The mLSTM layer of images: a 3 x 3 convolution in front of q and k, and one direction through the patches.

    ``u, z = W_up x``; ``c = silu(conv(u))``; q and k from c, v from u, by blocks of 4;
    ``W_down ((norm(mlstm_scan(q, k, v, i, f)) + skip * c) * silu(z))``.

    Args:
        dim: Features of a token.
        backwards: Whether it reads from the bottom right.
        expand: Channels inside, in multiples of dim.
        heads: Heads.

    Source:
        Alkin et al., Vision-LSTM: xLSTM as generic vision backbone (2024), section 3; biases: its second version.
    """

    def __init__(self, dim: int, backwards: bool, expand: int = 2, heads: int = 4) -> None:
        super().__init__()
        width, std = expand * dim, (2 / (5 * dim)) ** 0.5
        blocks = count_heads("ViL", width, None, at_most=4)
        self.backwards, self.heads = backwards, heads
        self.proj_up = nn.Linear(dim, 2 * width)
        self.q_proj, self.k_proj, self.v_proj = (BlockLinear(width, blocks, std, bias=True) for _ in range(3))
        self.conv = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.mlstm_cell = MLSTMCell(heads, width // heads, bias=True)
        self.learnable_skip = undecayed(torch.ones(width))
        self.proj_down = nn.Linear(width, dim)
        nn.init.normal_(self.proj_up.weight, std=std)
        nn.init.normal_(self.proj_down.weight, std=2 / dim**0.5)

    def forward(self, x: Tensor, size: Size) -> Tensor:
        """Mix tokens x (B, H W, dim)."""
        if self.backwards:
            x = x.flip(1)
        u, z = self.proj_up(x).chunk(2, -1)
        c = F.silu(self.conv(u.unflatten(1, size).movedim(-1, 1)).movedim(1, -1).flatten(1, 2))
        width, dtype = u.shape[-1] // self.heads, widen(u[:0]).dtype
        shapes = (width, width), (width,), ()
        start = MLSTMState(*(u.new_zeros((u.shape[0], self.heads, *shape), dtype=dtype) for shape in shapes))
        h, _ = self.mlstm_cell(self.q_proj(c), self.k_proj(c), self.v_proj(u), start, None)
        y: Tensor = self.proj_down((h + self.learnable_skip * c) * F.silu(z))
        return y.flip(1) if self.backwards else y


class ViL(Isotropic):
    """Vision-LSTM: twelve pairs of :class:`ViLLayer`, forwards and backwards, and a head on the first and last token.

    Args:
        head_norm: Whether what the head sees is normed once more, as the release's weights have it.
        kwargs: As of :class:`Isotropic`.

    Raises:
        ValueError: ``head_norm`` is asked for with another pooling than ``ends``.

    Source:
        Alkin et al., Vision-LSTM: xLSTM as generic vision backbone (2024); sizes: its second version.
    """

    def __init__(self, *, head_norm: bool = False, **kwargs: Any) -> None:
        def block(site: Site) -> nn.Module:
            return TokenBlock(site, ViLLayer(site.dim, backwards=site.number % 2 == 1), nn.LayerNorm)

        super().__init__(block, **{"global_pool": "ends", "depth": 24, **kwargs})
        if head_norm and self.global_pool != "ends":
            raise ValueError(f"head_norm goes with global_pool 'ends', found {self.global_pool!r}")
        place: dict[str, Any] = {"device": kwargs.get("device"), "dtype": kwargs.get("dtype")}
        self.fc_norm = nn.LayerNorm(self.head_hidden_size, eps=1e-6, **place) if head_norm else nn.Identity()

    def _pool(self, x: Tensor, size: Size | None) -> Tensor:
        pooled = super()._pool(x, size)
        return self.fc_norm(pooled) if self.global_pool == "ends" else pooled


_RELEASED = (
    (r"^xlstm\.", ""),
    (r"\.xlstm_norm\.", ".norm."),
    (r"\.(xlstm|layer)\.", ".mixer."),
    (r"\.conv1d\.", ".conv."),
    (r"^post_blocks_norm\.", "norm."),
    (r"^(head\.0|legacy_norm)\.", "fc_norm."),
    (r"^head\.1\.", "head."),
    (r"^pos_embed\.embed$", "pos_embed"),
)
"""What a training file and the release's own network call things, and what they are called here, in this order."""


def checkpoint_filter_fn(state_dict: dict[str, Any], model: ViL) -> dict[str, Tensor]:
    """Return weights of ViL's release under the names used here; this package's own stay as they are.

    Both forms of the release serve: the files to download, and the state of its network, whose blocks are pairs. Its
    norms of tokens store their weights less 1.

    Args:
        state_dict: The release's file, or a state of a model of this package.
        model: What is to load it.

    Returns:
        The weights for ``model.load_state_dict``.

    Raises:
        ConfigError: The file is of ViL's first version, or it and the model differ in ``head_norm``.
    """
    weights = entry.unwrapped(state_dict)
    if any(".conv1d.conv." in name or ".conv.conv." in name for name in weights):
        raise ConfigError(
            "vil: these are weights of ViL's first version, which convolves along the sequence and has no biases; "
            "the second one is built here: take a file whose name begins with vil2"
        )
    if not any(name.startswith("xlstm.") or ".rowwise_from_" in name for name in weights):
        return entry.checkpoint_filter_fn(weights, model)
    renamed = {}
    for name, value in weights.items():
        if name.endswith(".causal_mask"):
            continue
        name = re.sub(
            r"^blocks\.(\d+)\.rowwise_from_(top_left|bot_right)\.",
            lambda pair: f"blocks.{2 * int(pair[1]) + (pair[2] == 'bot_right')}.",
            name,
        )
        for theirs, ours in _RELEASED:
            name = re.sub(theirs, ours, name)
        if name == "norm.weight" or re.fullmatch(r"blocks\.\d+\.norm\.weight", name):
            value = value + 1
        renamed[name] = value.flatten(1, 2) if name == "pos_embed" else value
    there, here = "fc_norm.weight" in renamed, isinstance(model.fc_norm, nn.LayerNorm)
    if there != here:
        raise ConfigError(
            f"vil: the file {'norms' if there else 'does not norm'} what the head sees: "
            f"build the model with head_norm={there}"
        )
    return entry.checkpoint_filter_fn(renamed, model)


default_cfgs = generate_default_cfgs({name: config() for name in ("vil_tiny", "vil_small", "vil_base")})


@register_model
def vil_tiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ViL-T: width 192, 6 M parameters."""
    return create(ViL, "vil_tiny", pretrained, checkpoint_filter_fn, **{"embed_dim": 192, **kwargs})


@register_model
def vil_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ViL-S: width 384, 23 M parameters."""
    return create(ViL, "vil_small", pretrained, checkpoint_filter_fn, **{"embed_dim": 384, **kwargs})


@register_model
def vil_base(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ViL-B: width 768, 89 M parameters."""
    return create(ViL, "vil_base", pretrained, checkpoint_filter_fn, **{"embed_dim": 768, **kwargs})
