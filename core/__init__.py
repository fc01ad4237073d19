"""Mixers, orders, blocks and the training base that every domain shares.

Names are imported where they are first asked for, so that ``import scanweave.core`` alone loads no framework.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .blocks import Block, Stack
    from .errors import ConfigError, DataError
    from .orders import Bidirectional, Forward, Order, Reversed
    from .registry import Mixer, create_mixer, list_mixers, register_mixer

_HOME = {
    "Bidirectional": "orders",
    "Block": "blocks",
    "ConfigError": "errors",
    "DataError": "errors",
    "Forward": "orders",
    "Mixer": "registry",
    "Order": "orders",
    "Reversed": "orders",
    "Stack": "blocks",
    "create_mixer": "registry",
    "list_mixers": "registry",
    "register_mixer": "registry",
}

__all__ = [
    "Bidirectional",
    "Block",
    "ConfigError",
    "DataError",
    "Forward",
    "Mixer",
    "Order",
    "Reversed",
    "Stack",
    "create_mixer",
    "list_mixers",
    "register_mixer",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
