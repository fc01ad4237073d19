"""How a family of isotropic backbones enters timm: its configuration, its construction, published weights."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from timm.layers import resample_abs_pos_embed
from timm.models import build_model_with_cfg
from torch import Tensor, nn

from .isotropic import Isotropic


def unwrapped(state_dict: dict[str, Any]) -> dict[str, Tensor]:
    """Return the weights of a training script's file, which may keep them under ``model`` or ``state_dict``."""
    weights: dict[str, Tensor] = state_dict.get("model", state_dict.get("state_dict", state_dict))
    return weights


def checkpoint_filter_fn(state_dict: dict[str, Any], model: Isotropic) -> dict[str, Tensor]:
    """Return published weights under this model's names; positions of another image size are resampled."""
    renamed = {
        re.sub(r"^norm_f\.", "norm.", re.sub(r"^layers\.", "blocks.", name)): value
        for name, value in unwrapped(state_dict).items()
    }
    pos = renamed.get("pos_embed")
    if pos is not None and model.pos_embed is not None and pos.shape != model.pos_embed.shape and pos.dim() == 3:
        patches, prefix = model.split(pos)
        patches = resample_abs_pos_embed(patches, list(model.patch_embed.grid_size), num_prefix_tokens=0)
        renamed["pos_embed"] = model.join(patches, prefix)
    return renamed


def config(**changes: Any) -> dict[str, Any]:
    """Return a timm configuration of a model without published weights here."""
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": None,
        "crop_pct": 0.9,
        "interpolation": "bicubic",
        "fixed_input_size": False,
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        "license": "apache-2.0",
        **changes,
    }


def create(
    cls: type[Isotropic],
    name: str,
    pretrained: bool,
    filter_fn: Callable[[dict[str, Any], Any], dict[str, Tensor]] = checkpoint_filter_fn,
    **kwargs: Any,
) -> nn.Module:
    """Build a registered model as timm does: configuration, weights of a file, features only.

    Args:
        cls: The family's class.
        name: The registered name.
        pretrained: Whether weights are loaded (from ``pretrained_cfg_overlay``'s file; none are hosted).
        filter_fn: Turns a file's weights into the model's.
        kwargs: The model's arguments, over the name's own.

    Returns:
        The model, or with ``features_only`` what wraps it.
    """
    indices = kwargs.pop("out_indices", 3)
    model: nn.Module = build_model_with_cfg(
        cls,
        name,
        pretrained,
        pretrained_filter_fn=filter_fn,
        feature_cfg={"out_indices": indices, "feature_cls": "getter"},
        **kwargs,
    )
    return model
