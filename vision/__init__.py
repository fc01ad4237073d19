"""Image and video backbones and their tasks. Importing this registers the backbones with timm."""

from __future__ import annotations

from .backbones import list_backbones

__all__ = ["list_backbones"]
