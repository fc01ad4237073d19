"""Backbones from timm's registry, and weights from a file of one's own."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
from torch import Tensor, nn

from ...core.errors import ConfigError, nearest
from ...core.storage import read_weights, require_same_layout


def create_backbone(name: str, *, img_size: int, options: Mapping[str, Any], **shared: Any) -> nn.Module:
    """Create a model that timm knows, ours included, at an image size, with untrained weights.

    Args:
        name: A name of ``timm.list_models()``.
        img_size: Height and width, told to models that are built for one size.
        options: The model's own arguments.
        shared: ``num_classes``, ``in_chans`` and the like.

    Returns:
        The model.

    Raises:
        ConfigError: timm knows no such model, or the model refuses an argument.
    """
    if not timm.is_model(name):
        raise ConfigError(
            f"--model.backbone is {name!r}, which timm does not know{nearest(name, timm.list_models())}; "
            "`scanweave models` and timm.list_models() list the names"
        )
    given = {**shared, **options}
    try:
        try:
            return timm.create_model(name, pretrained=False, img_size=img_size, **given)
        except TypeError as error:
            if "img_size" not in str(error):
                raise
            return timm.create_model(name, pretrained=False, **given)  # it takes any size
    except (TypeError, ValueError, AssertionError) as error:
        raise ConfigError(
            f"{name} cannot be built at {img_size} pixels with {given}: {error}; see --model.backbone_options and "
            "--data.img_size"
        ) from error


def load_backbone(model: nn.Module, path: str) -> list[str]:
    """Load weights from a file; the classifier stays untrained where the file's has other classes.

    The file may be timm's (``.safetensors``, ``.pth``), a run's checkpoint, or an exported model's weights. Names and
    sizes are adapted by the model's own ``checkpoint_filter_fn`` where it has one (positions are resampled).

    Args:
        model: The model.
        path: The file.

    Returns:
        Names of the tensors that were left as they are: the classifier's, or none.

    Raises:
        ConfigError: The file is absent, damaged or holds pickled objects, or other tensors than the classifier's
            differ; lists them.
    """
    weights = _unwrap(read_weights(Path(path)))
    adapt = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if adapt is not None:
        weights = dict(adapt(weights, model))
    expected = model.state_dict()
    heads = getattr(model, "pretrained_cfg", {}).get("classifier") or ()
    heads = (heads,) if isinstance(heads, str) else tuple(heads)
    left = [
        name
        for name, value in expected.items()
        if name.startswith(tuple(f"{head}." for head in heads))
        and (name not in weights or weights[name].shape != value.shape)
    ]
    whole = {key: value for key, value in weights.items() if not key.startswith(tuple(f"{head}." for head in heads))}
    whole |= {key: weights[key] for key in weights if key in expected and key not in left and key not in whole}
    require_same_layout(whole, {key: value for key, value in expected.items() if key not in left}, path)
    model.load_state_dict(whole, strict=False)
    return left


def _unwrap(weights: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return a network's tensors from the wrappings that training programs put around them."""
    for key in ("state_dict_ema", "model_ema", "state_dict", "model"):
        if isinstance(weights.get(key), Mapping):
            weights = weights[key]
            break
    tensors = {name.removeprefix("module."): value for name, value in weights.items() if isinstance(value, Tensor)}
    inside = {name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")}
    return inside or tensors
