"""The shell of image backbones that keep one resolution: patches, positions, blocks, norm, head; as timm wants it."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Literal, NamedTuple

import torch
from timm.layers import DropPath, Mlp, PatchEmbed, resample_abs_pos_embed, trunc_normal_
from timm.models._features import feature_take_indices
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Pool = Literal["avg", "token", "ends", "corners", ""]
Place = Literal["first", "middle", "last"]

_POOLED = {"avg": 1, "token": 1, "ends": 2, "corners": 1, "": 1}
"""Tokens that the head sees side by side."""

Size = tuple[int, int]


class Site(NamedTuple):
    """Where in a network a block is built: its number, its width, its rate of being skipped."""

    number: int
    dim: int
    drop_path: float


class TokenBlock(nn.Module):
    """Pre-norm residual block of image tokens: ``x = x + mixer(norm(x))``, then ``x = x + mlp(norm(x))``.

    Args:
        site: Where it stands.
        mixer: Called with tokens (B, L, C) and the grid's (H, W).
        norm: Builds a norm from the width.
        mlp_ratio: Hidden features of the feed-forward layer in multiples of the width; 0 leaves it out.
    """

    def __init__(self, site: Site, mixer: nn.Module, norm: Callable[[int], nn.Module], mlp_ratio: float = 0.0) -> None:
        super().__init__()
        self.norm = norm(site.dim)
        self.mixer = mixer
        self.drop_path = DropPath(site.drop_path) if site.drop_path else nn.Identity()
        self.norm2 = norm(site.dim) if mlp_ratio else None
        self.mlp = Mlp(site.dim, int(mlp_ratio * site.dim)) if mlp_ratio else None

    def forward(self, x: Tensor, size: Size) -> Tensor:
        """Mix tokens x (B, L, C) of a grid (H, W)."""
        x = x + self.drop_path(self.mixer(self.norm(x), size))
        if self.mlp is None or self.norm2 is None:
            return x
        return x + self.drop_path(self.mlp(self.norm2(x)))


class OnGrid(nn.Module):
    """A grid mixer under tokens without a class token.

    Args:
        mixer: Maps (B, H, W, C) to the same.
    """

    def __init__(self, mixer: nn.Module) -> None:
        super().__init__()
        self.mixer = mixer

    def forward(self, x: Tensor, size: Size) -> Tensor:
        """Mix tokens x (B, H W, C)."""
        y: Tensor = self.mixer(x.unflatten(1, size)).flatten(1, 2)
        return y


class Isotropic(nn.Module):
    """An image backbone of one resolution with timm's whole contract.

    Images of any size serve: positions are resampled, and sides that are no multiple of the patch are refused.

    Args:
        make_block: Builds the block at a site; called as ``block(tokens, (H, W))``.
        img_size: Side of the images that the positions are made for, in pixels.
        patch_size: Side of a patch, in pixels.
        in_chans: Channels of the images.
        num_classes: Classes; 0 leaves the classifier out.
        global_pool: What the head sees: ``avg`` of the patches, the class ``token``, both ``ends`` of the sequence side
            by side, the mean of the four ``corners``, or all tokens (the empty string).
        embed_dim: Features of a token.
        depth: Blocks.
        class_token: Where in the sequence a class token stands, or None for no such token.
        pos_embed: Positions that are ``learn``ed, sines and cosines (``sincos``), or ``none``.
        norm: Builds the last norm from the width.
        drop_rate: Dropout before the classifier.
        pos_drop_rate: Dropout of the tokens after positions are added.
        drop_path_rate: The last block's chance that a sample skips a branch in training; it grows linearly from 0.
        device: Where parameters are made.
        dtype: The parameters' dtype.

    Raises:
        ValueError: ``global_pool`` is unknown or asks for a class token that is not there.
    """

    def __init__(
        self,
        make_block: Callable[[Site], nn.Module],
        *,
        img_size: int | Size = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: Pool = "avg",
        embed_dim: int = 192,
        depth: int = 12,
        class_token: Place | None = None,
        pos_embed: Literal["learn", "sincos", "none"] = "learn",
        norm: Callable[[int], nn.Module] = nn.LayerNorm,
        drop_rate: float = 0.0,
        pos_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_classes, self.in_chans, self.embed_dim = num_classes, in_chans, embed_dim
        self.num_features = embed_dim
        self.class_token = class_token
        self.num_prefix_tokens = int(class_token is not None)
        self.grad_checkpointing = False
        with torch.device(device) if device is not None else nullcontext():
            self.patch_embed = PatchEmbed(
                img_size, patch_size, in_chans, embed_dim, strict_img_size=False, output_fmt="NHWC"
            )
            self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim)) if class_token else None
            self.pos_embed = self._positions(pos_embed)
            self.pos_drop = nn.Dropout(pos_drop_rate)
            rates = torch.linspace(0, drop_path_rate, depth, device="cpu").tolist()
            self.blocks = nn.ModuleList(make_block(Site(i, embed_dim, rate)) for i, rate in enumerate(rates))
            self.norm = norm(embed_dim)
            self.head_drop = nn.Dropout(drop_rate)
            self.head: nn.Module = nn.Identity()
            self._make_head(num_classes, global_pool)
        self.feature_info = [
            {"num_chs": embed_dim, "reduction": patch_size, "module": f"blocks.{i}"} for i in range(depth)
        ]
        self._initialise()
        if dtype is not None:
            self.to(dtype)

    def _positions(self, kind: str) -> nn.Parameter | None:
        if kind == "none":
            return None
        if kind == "learn":
            count = self.patch_embed.num_patches + self.num_prefix_tokens
            return nn.Parameter(torch.zeros(1, count, self.embed_dim))
        return nn.Parameter(sincos(self.patch_embed.grid_size, self.embed_dim).unsqueeze(0), requires_grad=False)

    def _initialise(self) -> None:
        weight = self.patch_embed.proj.weight
        nn.init.normal_(weight, std=math.sqrt(1 / weight[0].numel()))
        if self.patch_embed.proj.bias is not None:
            nn.init.zeros_(self.patch_embed.proj.bias)
        if self.pos_embed is not None and self.pos_embed.requires_grad:
            trunc_normal_(self.pos_embed, std=0.02)
        if self.cls_token is not None:
            trunc_normal_(self.cls_token, std=0.02)

    def _make_head(self, num_classes: int, global_pool: Pool) -> None:
        if global_pool not in _POOLED or (global_pool == "token" and self.cls_token is None):
            with_token = [name for name in _POOLED if name != "token" or self.cls_token is not None]
            raise ValueError(f"global_pool is {global_pool!r}, expected one of {with_token} for this model")
        self.num_classes, self.global_pool = num_classes, global_pool
        self.head_hidden_size = _POOLED[global_pool] * self.embed_dim
        if num_classes > 0:
            self.head = nn.Linear(self.head_hidden_size, num_classes)
            trunc_normal_(self.head.weight, std=0.02)
            nn.init.zeros_(self.head.bias)
        else:
            self.head = nn.Identity()

    # --- what timm asks ----------------------------------------------------------------------------------------------

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters to leave out of weight decay: positions, the token, and a recurrence's own."""
        marked = {name for name, p in self.named_parameters() if getattr(p, "_no_weight_decay", False)}
        return marked | {name for name in ("pos_embed", "cls_token") if getattr(self, name) is not None}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return patterns that group parameters by depth."""
        return {
            "stem": r"^cls_token|pos_embed|patch_embed",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))],
        }

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute blocks in the backward pass, to spare memory."""
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """Return the classifier."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: Pool | None = None) -> None:
        """Put a new classifier in.

        Args:
            num_classes: Its classes; 0 for none.
            global_pool: What it sees; None keeps that.
        """
        like = next(self.parameters())
        self._make_head(num_classes, self.global_pool if global_pool is None else global_pool)
        self.head.to(like.device, like.dtype)

    # --- forward -----------------------------------------------------------------------------------------------------

    def _place(self, patches: int) -> int:
        return {"first": 0, "middle": patches // 2, "last": patches, None: 0}[self.class_token]

    def split(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return the patches among tokens (B, L, C), and the class token (B, 1, C); (B, 0, C) where there is none."""
        if not self.num_prefix_tokens:
            return tokens, tokens[:, :0]
        place = self._place(tokens.shape[1] - 1)
        return torch.cat([tokens[:, :place], tokens[:, place + 1 :]], 1), tokens[:, place : place + 1]

    def join(self, patches: Tensor, prefix: Tensor) -> Tensor:
        """Return the tokens (B, L, C) that :meth:`split` gives as patches and a class token."""
        place = self._place(patches.shape[1])
        return torch.cat([patches[:, :place], prefix, patches[:, place:]], 1)

    def _tokens(self, x: Tensor) -> tuple[Tensor, Size]:
        """Return the tokens of images with positions, and the grid's size."""
        x = self.patch_embed(x)
        size = (x.shape[1], x.shape[2])
        x = x.flatten(1, 2)
        if self.cls_token is not None:
            x = self.join(x, self.cls_token.expand(x.shape[0], -1, -1))
        if self.pos_embed is not None:
            patches, prefix = self.split(self.pos_embed)
            patches = resample_abs_pos_embed(patches, size, self.patch_embed.grid_size, num_prefix_tokens=0)
            x = x + self.join(patches, prefix)
        return self.pos_drop(x), size

    def _run(self, block: nn.Module, x: Tensor, size: Size) -> Tensor:
        if self.grad_checkpointing and self.training:
            y: Tensor = checkpoint(block, x, size, use_reentrant=False)
            return y
        return block(x, size)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the tokens after the last norm, (B, L, embed_dim), of images (B, in_chans, H, W)."""
        return self._features(x)[0]

    def _features(self, x: Tensor) -> tuple[Tensor, Size]:
        x, size = self._tokens(x)
        for block in self.blocks:
            x = self._run(block, x, size)
        return self.norm(x), size

    def forward_head(self, x: Tensor, pre_logits: bool = False, size: Size | None = None) -> Tensor:
        """Return logits of tokens, or with ``pre_logits`` what the classifier would see.

        Args:
            x: Tokens (B, L, embed_dim) as :meth:`forward_features` gives them.
            pre_logits: Whether to stop before the classifier.
            size: The grid's height and width, where it has corners and is not square.
        """
        x = self.head_drop(self._pool(x, size))
        return x if pre_logits else self.head(x)

    def _pool(self, x: Tensor, size: Size | None) -> Tensor:
        if self.global_pool == "token":
            return x[:, self._place(x.shape[1] - 1)]
        patches, _ = self.split(x)
        if self.global_pool == "avg":
            return patches.mean(1)
        if self.global_pool == "ends":
            return torch.cat([patches[:, 0], patches[:, -1]], -1)
        if self.global_pool == "corners":
            width = size[1] if size is not None else self._width(patches.shape[1])
            return torch.stack([patches[:, i] for i in (0, width - 1, -width, -1)]).mean(0)
        return x

    def _width(self, patches: int) -> int:
        """Return the width of a grid of which only the number of patches is known."""
        height, width = self.patch_embed.grid_size
        if height * width == patches:
            return width
        side = math.isqrt(patches)
        if side * side != patches:
            raise ValueError(f"{patches} patches are no square: tell forward_head the grid by size=(height, width)")
        return side

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, num_classes) of images (B, in_chans, H, W)."""
        features, size = self._features(x)
        return self.forward_head(features, size=size)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        return_prefix_tokens: bool = False,
    ) -> Any:
        """Return the blocks' outputs besides the features.

        Args:
            x: Images (B, in_chans, H, W).
            indices: Which blocks, or the last so many; None is all.
            norm: Whether the last norm is applied to each.
            stop_early: Whether to stop at the last block asked for.
            output_fmt: ``NCHW``, or ``NLC``.
            intermediates_only: Whether the features are left out.
            return_prefix_tokens: Whether each intermediate comes in a pair with the class token, (B, 1, embed_dim).

        Returns:
            The list of intermediates, or the features and the list.

        Raises:
            ValueError: ``output_fmt`` is unknown.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt is {output_fmt!r}, expected 'NCHW' or 'NLC'")
        wanted, last = feature_take_indices(len(self.blocks), indices)
        x, size = self._tokens(x)
        found = []
        for i, block in enumerate(self.blocks[: last + 1] if stop_early else self.blocks):
            x = self._run(block, x, size)
            if i in wanted:
                patches, prefix = self.split(self.norm(x) if norm else x)
                patches = patches.mT.unflatten(2, size).contiguous() if output_fmt == "NCHW" else patches
                found.append((patches, prefix) if return_prefix_tokens and self.num_prefix_tokens else patches)
        return found if intermediates_only else (self.norm(x), found)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Take off what intermediates up to these do not need.

        Args:
            indices: Which blocks, or the last so many.
            prune_norm: Whether the last norm goes.
            prune_head: Whether the classifier goes.

        Returns:
            The blocks' numbers.
        """
        wanted, last = feature_take_indices(len(self.blocks), indices)
        self.blocks = self.blocks[: last + 1]
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0, "")
        return list(wanted)


def sincos(size: Size, dim: int) -> Tensor:
    """Return positions of a grid as sines and cosines, (H W, dim): a half for the row, a half for the column."""
    frequency = 1e4 ** -torch.linspace(0, 1, dim // 4 + 1)[:-1]
    rows, columns = (torch.arange(length).unsqueeze(1) * frequency for length in size)
    parts = [wave(rows).unsqueeze(1).expand(-1, size[1], -1) for wave in (torch.sin, torch.cos)]
    parts += [wave(columns).unsqueeze(0).expand(size[0], -1, -1) for wave in (torch.sin, torch.cos)]
    return nn.functional.pad(torch.cat(parts, -1).flatten(0, 1), (0, dim - 4 * len(frequency)))
