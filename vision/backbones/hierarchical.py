"""The shell of image backbones of four resolutions: stem, stages, norm, head; as timm wants it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from timm.layers import ClassifierHead, trunc_normal_
from timm.models import build_model_with_cfg
from timm.models._features import feature_take_indices
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...core.registry import Mixer
from .entry import unwrapped
from .isotropic import Site


class ToGrid(nn.Module):
    """Move the channels of (B, C, H, W) to the end."""

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, H, W, C)."""
        return x.permute(0, 2, 3, 1)


class ToPlanes(nn.Module):
    """Move the channels of (B, H, W, C) to the front."""

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, H, W)."""
        return x.permute(0, 3, 1, 2)


class Stage(nn.Module):
    """Blocks of one resolution, one after another, after a convolution that halves the sides.

    Args:
        blocks: Maps of grids (B, H, W, C).
        dim_in: Features of the stage before; None for the first stage, which halves nothing.
        dim: Features.
    """

    def __init__(self, blocks: Sequence[nn.Module], dim_in: int | None, dim: int) -> None:
        super().__init__()
        self.grad_checkpointing = False
        self.downsample = (
            nn.Sequential(ToPlanes(), nn.Conv2d(dim_in, dim, 3, 2, 1), ToGrid(), nn.LayerNorm(dim))
            if dim_in is not None
            else nn.Identity()
        )
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        """Map a grid (B, H, W, dim_in) to (B, ceil(H / 2), ceil(W / 2), dim), or of the same size if the first."""
        return self.mix(self.downsample(x))

    def mix(self, x: Tensor) -> Tensor:
        """Run the blocks over a grid (B, H, W, dim)."""
        for block in self.blocks:
            x = self.run(block, x)
        return x

    def run(self, module: nn.Module, *inputs: Tensor) -> Tensor:
        """Run a module, which the backward pass repeats if checkpointing is on."""
        if self.grad_checkpointing and self.training:
            y: Tensor = checkpoint(module, *inputs, use_reentrant=False)
            return y
        return module(*inputs)


class Hierarchical(nn.Module):
    """An image backbone of four resolutions, strides 4 to 32, with timm's whole contract; images of any size serve.

    Args:
        make_block: Builds the block at a site.
        stage: What the blocks of one resolution stand in.
        depths: Blocks in each stage.
        dims: Features in each stage.
        in_chans: Channels of the images.
        num_classes: Classes; 0 leaves the classifier out.
        global_pool: timm's name of a pooling; the empty string leaves it out.
        drop_rate: Dropout before the classifier.
        drop_path_rate: The last block's chance that a sample skips a branch in training; it grows linearly from 0.
        device: Where parameters are made.
        dtype: The parameters' dtype.

    Raises:
        ValueError: ``depths`` and ``dims`` differ in length.
    """

    output_fmt = "NHWC"

    def __init__(
        self,
        make_block: Callable[[Site], nn.Module],
        *,
        stage: type[Stage] = Stage,
        depths: Sequence[int] = (2, 2, 8, 2),
        dims: Sequence[int] = (96, 192, 384, 768),
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if len(depths) != len(dims):
            raise ValueError(f"depths has {len(depths)} entries and dims has {len(dims)}, expected as many")
        self.num_classes, self.in_chans = num_classes, in_chans
        self.drop_rate, self.drop_path_rate = drop_rate, drop_path_rate
        self.num_features = self.head_hidden_size = dims[-1]
        rates = iter(enumerate(torch.linspace(0, drop_path_rate, sum(depths), device="cpu").tolist()))
        with torch.device(device) if device is not None else nullcontext():
            self.patch_embed = _stem(in_chans, dims[0])
            stages = []
            for depth, dim_in, dim in zip(depths, (None, *dims[:-1]), dims, strict=True):
                sites = [Site(number, dim, rate) for _, (number, rate) in zip(range(depth), rates, strict=False)]
                stages.append(stage([make_block(site) for site in sites], dim_in, dim))
            self.stages = nn.Sequential(*stages)
            self.norm: nn.Module = nn.LayerNorm(dims[-1])
            self.head = ClassifierHead(dims[-1], num_classes, global_pool, drop_rate, input_fmt=self.output_fmt)
        self.feature_info = [
            {"num_chs": dim, "reduction": 4 * 2**i, "module": f"stages.{i}"} for i, dim in enumerate(dims)
        ]
        self._initialise()
        if dtype is not None:
            self.to(dtype)

    def _initialise(self) -> None:
        """Draw the linear maps, but for those of registered mixers, which have drawn their own."""
        drawn = {part for mixer in self.modules() if isinstance(mixer, Mixer) for part in mixer.modules()}
        for module in self.modules():
            if isinstance(module, nn.Linear) and module not in drawn:
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    @property
    def global_pool(self) -> str:
        """The name of the head's pooling."""
        return str(self.head.global_pool.pool_type)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Return the names of the recurrences' parameters to leave out of weight decay."""
        return {name for name, p in self.named_parameters() if getattr(p, "_no_weight_decay", False)}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return patterns that group parameters by depth: by stage if coarse, else by block."""
        fine = [
            (r"^stages\.(\d+)\.downsample", (0,)),
            (r"^stages\.(\d+)\.\w+\.(\d+)", None),
            (r"^norm", (99999,)),
        ]
        return {"stem": r"^patch_embed", "blocks": r"^stages\.(\d+)" if coarse else fine}

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute blocks in the backward pass, to spare memory."""
        for stage in self.stages:
            stage.grad_checkpointing = enable  # type: ignore[assignment]

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """Return the classifier."""
        fc: nn.Module = self.head.fc
        return fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a new classifier in.

        Args:
            num_classes: Its classes; 0 for none.
            global_pool: The pooling before it; None keeps that.
        """
        like = next(self.parameters())
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool)
        self.head.to(like.device, like.dtype)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last grid after the norm, (B, H / 32, W / 32, C), of images (B, in_chans, H, W)."""
        y: Tensor = self.norm(self.stages(self.patch_embed(x)))
        return y

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return logits of a grid (B, H, W, C), or with ``pre_logits`` what the classifier would see."""
        y: Tensor = self.head(x, pre_logits=pre_logits)
        return y

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, num_classes) of images (B, in_chans, H, W)."""
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Return the stages' outputs besides the features.

        Args:
            x: Images (B, in_chans, H, W).
            indices: Which stages, or the last so many; None is all.
            norm: Whether the last norm is applied to the last stage's.
            stop_early: Whether to stop at the last stage asked for.
            output_fmt: ``NCHW`` or ``NHWC``.
            intermediates_only: Whether the features are left out.

        Returns:
            The list of intermediates, or the features and the list.

        Raises:
            ValueError: ``output_fmt`` is unknown.
        """
        if output_fmt not in ("NCHW", "NHWC"):
            raise ValueError(f"output_fmt is {output_fmt!r}, expected 'NCHW' or 'NHWC'")
        wanted, last = feature_take_indices(len(self.stages), indices)
        x = self.patch_embed(x)
        found = []
        for i, stage in enumerate(self.stages[: last + 1] if stop_early else self.stages):
            x = stage(x)
            if i in wanted:
                y = self.norm(x) if norm and i == len(self.feature_info) - 1 else x
                found.append(y.permute(0, 3, 1, 2).contiguous() if output_fmt == "NCHW" else y)
        if intermediates_only:
            return found
        return (self.norm(x) if x.shape[-1] == self.feature_info[-1]["num_chs"] else x), found

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Take off what intermediates up to these do not need.

        Args:
            indices: Which stages, or the last so many.
            prune_norm: Whether the last norm goes; it goes with the last stage in any case.
            prune_head: Whether the classifier goes; it goes with the last stage in any case.

        Returns:
            The stages' numbers.
        """
        wanted, last = feature_take_indices(len(self.stages), indices)
        shorter = last + 1 < len(self.stages)
        self.stages = self.stages[: last + 1]
        if prune_norm or shorter:
            self.norm = nn.Identity()
        if prune_head or shorter:
            self.reset_classifier(0, "")
        if shorter:
            self.num_features = self.head_hidden_size = int(self.feature_info[last]["num_chs"])  # type: ignore
        return list(wanted)


def _stem(in_chans: int, dim: int) -> nn.Sequential:
    half = dim // 2
    first = (nn.Conv2d(in_chans, half, 3, 2, 1), ToGrid(), nn.LayerNorm(half), ToPlanes(), nn.GELU())
    return nn.Sequential(*first, nn.Conv2d(half, dim, 3, 2, 1), ToGrid(), nn.LayerNorm(dim))


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Return weights of VMamba's release under the names used here: a stage begins with its convolution, not ends."""
    renamed = {}
    for name, value in unwrapped(state_dict).items():
        name = re.sub(r"^layers\.(\d+)\.downsample", lambda m: f"stages.{int(m[1]) + 1}.downsample", name)
        name = re.sub(r"^layers\.", "stages.", name)
        renamed[name.replace("classifier.norm.", "norm.").replace("classifier.head.", "head.fc.")] = value
    return renamed


def create(cls: type[Hierarchical], name: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    """Build a registered model as timm does, with its features by stage where only they are asked for.

    Args:
        cls: The family's class.
        name: The registered name.
        pretrained: Whether weights are loaded (from ``pretrained_cfg_overlay``'s file; none are hosted).
        kwargs: The model's arguments, over the name's own.

    Returns:
        The model, or with ``features_only`` what wraps it.
    """
    features = {"out_indices": kwargs.pop("out_indices", (0, 1, 2, 3)), "feature_cls": "getter"}
    model: nn.Module = build_model_with_cfg(
        cls, name, pretrained, pretrained_filter_fn=checkpoint_filter_fn, feature_cfg=features, **kwargs
    )
    return model
