"""Errors meant for the person at the keyboard: the command line prints them without a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DataError(ValueError):
    """Input data is unusable; the message names file, place, found, expected, and what to do."""

    def __init__(self, message: str) -> None:
        # PyTorch makes a loader process's error anew, with the traceback from there as its message.
        super().__init__(message.rpartition(".errors.DataError: ")[2] if message.startswith("Caught ") else message)


class ConfigError(ValueError):
    """A setting is wrong or contradicts another; the message names it and what would be right."""


def nearest(word: str, known: Iterable[str]) -> str:
    """Return `` (did you mean 'x'?)`` for the closest known word, or an empty string.

    Args:
        word: What was found.
        known: The words that would have been right.

    Returns:
        A phrase to append to an error message.
    """
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" (did you mean '{close[0]}'?)" if close else ""
