"""Recurrences as pure functions on tensors: the floor that everything else stands on."""

from .dispatch import BACKENDS, BackendError, served_by, use_backend
from .linear_scan import linear_scan
from .selective_scan import selective_scan

__all__ = ["BACKENDS", "BackendError", "linear_scan", "selective_scan", "served_by", "use_backend"]
