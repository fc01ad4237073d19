"""Recurrences as pure functions on tensors."""
