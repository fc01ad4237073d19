"""Image backbones. Importing this package registers every one of its modules' models with timm."""

from __future__ import annotations

import importlib
import pkgutil

_MODULES = [importlib.import_module(f".{module.name}", __name__) for module in pkgutil.iter_modules(__path__)]


def list_backbones() -> list[str]:
    """Return the names of this package's models, as ``timm.create_model`` takes them."""
    return sorted(name.partition(".")[0] for module in _MODULES for name in getattr(module, "default_cfgs", {}))
