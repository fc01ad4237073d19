"""Importing other libraries' implementations to compare with."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest


def import_peer(name: str) -> ModuleType:
    """Import a peer's module; skip the test where it is not installed.

    Args:
        name: The module's full name.

    Returns:
        The module.
    """
    # transformers looks for a package named `kernels` by importing it. With the repository's root on the path it would
    # find that folder, and register its ops a second time.
    sys.modules.setdefault("kernels", None)  # type: ignore[arg-type]
    return pytest.importorskip(name)
