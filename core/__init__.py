"""Mixers, orders, blocks and the training base that every domain shares.

Names are imported where they are first asked for, so that ``import scanweave.core`` alone loads no framework.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .blocks import Block, Stack
    from .errors import ConfigError, DataError
    from .layouts import (
        ClipMixer,
        GraphMixer,
        GridMixer,
        Scanned,
        create_clip_mixer,
        create_graph_mixer,
        create_grid_mixer,
    )
    from .orders import CROSS_SCAN, Bidirectional, Forward, Order, Reversed, create_order
    from .registry import Mixer, create_mixer, list_mixers, register_mixer

_HOME = {
    "Bidirectional": "orders",
    "Block": "blocks",
    "CROSS_SCAN": "orders",
    "ClipMixer": "layouts",
    "ConfigError": "errors",
    "DataError": "errors",
    "Forward": "orders",
    "GraphMixer": "layouts",
    "GridMixer": "layouts",
    "Mixer": "registry",
    "Order": "orders",
    "Reversed": "orders",
    "Scanned": "layouts",
    "Stack": "blocks",
    "create_clip_mixer": "layouts",
    "create_graph_mixer": "layouts",
    "create_grid_mixer": "layouts",
    "create_mixer": "registry",
    "create_order": "orders",
    "list_mixers": "registry",
    "register_mixer": "registry",
}

__all__ = [
    "CROSS_SCAN",
    "Bidirectional",
    "Block",
    "ClipMixer",
    "ConfigError",
    "DataError",
    "Forward",
    "GraphMixer",
    "GridMixer",
    "Mixer",
    "Order",
    "Reversed",
    "Scanned",
    "Stack",
    "create_clip_mixer",
    "create_graph_mixer",
    "create_grid_mixer",
    "create_mixer",
    "create_order",
    "list_mixers",
    "register_mixer",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
