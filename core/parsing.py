"""One clear line, with the nearest option, from the parser's complaints."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from typing import Any

import lightning.pytorch as pl
from jsonargparse import ArgumentError, Namespace
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import Logger

from .cli import UsageError
from .errors import nearest


def parse(parser: LightningArgumentParser, options: Sequence[str]) -> Namespace:
    """Parse options; what cannot be understood is said in one line.

    Args:
        parser: A parser with ``exit_on_error=False``.
        options: Command-line options.

    Returns:
        The parsed values.

    Raises:
        UsageError: The options, or a configuration they name, cannot be understood.
    """
    try:
        return parser.parse_args(list(options))
    except ArgumentError as error:
        raise UsageError(_explain(parser, " ".join(str(error).split()))) from error


def _explain(parser: LightningArgumentParser, message: str) -> str:
    """Return the parser's message in short, with the nearest word that would have been right."""
    for pattern, say in _EXPLANATIONS:
        if match := re.search(pattern, message):
            return say(parser, match)
    return message


def _class_option(parser: LightningArgumentParser, match: re.Match[str]) -> str:
    path, option = match.groups()
    known = _constructor_arguments(path)
    return f"{path.rsplit('.', 1)[-1]} has no argument {option!r}{nearest(option, known)}; it takes {_join(known)}"


def _class_value(parser: LightningArgumentParser, match: re.Match[str]) -> str:
    path, key, reason = match.groups()
    return f"{path.rsplit('.', 1)[-1]}: {key}: {_plain(reason)}"


def _class_name(parser: LightningArgumentParser, match: re.Match[str]) -> str:
    key, name = match.groups()
    known = sorted({cls.__name__ for base in (pl.LightningModule, Callback, Logger) for cls in _subclasses(base)})
    return f"{key}: there is no class {name!r}{nearest(name, known)}"


def _group_option(parser: LightningArgumentParser, match: re.Match[str]) -> str:
    group, option = match.groups()
    known = [key.removeprefix(group + ".") for key in _keys(parser) if key.startswith(group + ".")]
    return f"{group} has no option {option!r}{nearest(option, known)}"


def _top_option(parser: LightningArgumentParser, match: re.Match[str]) -> str:
    known = sorted({key.split(".")[0] for key in _keys(parser)})
    return f"there is no option {match[1]!r}{nearest(match[1], known)}; there are {_join(known)}"


def _argument(parser: LightningArgumentParser, match: re.Match[str]) -> str:
    option = match[1].split("=")[0]
    known = [f"--{key}" for key in _keys(parser)]
    return f"there is no option {option}{nearest(option, known)}"


def _value(parser: LightningArgumentParser, match: re.Match[str]) -> str:
    return f"{match[1]}: {_plain(match[2])}"


def _union(parser: LightningArgumentParser, match: re.Match[str]) -> str:
    key, kinds, value = match.groups()
    return f"{key}: {value!r} is none of {_plain(kinds).replace('NoneType', 'null')}"


_EXPLANATIONS: list[tuple[str, Callable[[LightningArgumentParser, re.Match[str]], str]]] = [
    (r"given class_path '([\w.]+)': Option '([\w.]+)' is not accepted", _class_option),
    (
        r"given class_path '([\w.]+)': Parser key \"([\w.]+)\": (.*?)(?: - Expected a <class 'NoneType'>|$)",
        _class_value,
    ),
    (r"Parser key \"([\w.]+)\".*given class_path '[\w.]+': module '[\w.]+' has no attribute '(\w+)'", _class_name),
    (r"Parser key \"([\w.]+)\".*Expected a dot import path string: (\S+)", _class_name),
    (r"Group '([\w.]+)' does not accept option '([\w.]+)'", _group_option),
    (r"Option '([\w.]+)' is not accepted", _top_option),
    (r"unrecognized arguments: (--?[^\s=]+)", _argument),
    (r"Parser key \"([\w.]+)\": Does not validate .*?Subtypes: \[(.*?)\] Errors:.*Given value: (.*)$", _union),
    (r"Parser key \"([\w.]+)\": (Expected a .*)$", _value),
]


def _plain(text: str) -> str:
    """Write types as people do: ``int`` for ``<class 'int'>``."""
    return re.sub(r"<class '(?:[\w.]*\.)?(\w+)'>", r"\1", text)


def _join(words: Iterable[str]) -> str:
    return ", ".join(words) or "none"


def _keys(parser: LightningArgumentParser) -> list[str]:
    return [action.dest for action in parser._actions if action.dest not in ("help", "version")]


def _subclasses(base: type[Any]) -> Iterable[type[Any]]:
    cls: type[Any]
    for cls in base.__subclasses__():
        yield cls
        yield from _subclasses(cls)


def _constructor_arguments(path: str) -> list[str]:
    """Return a class's arguments, those that reach its base classes through ``**kwargs`` included."""
    module, name = path.rsplit(".", 1)
    cls: Any = getattr(import_module(module), name)
    known: list[str] = []
    for base in cls.__mro__:
        if "__init__" not in vars(base):
            continue
        parameters = inspect.signature(base.__init__).parameters.values()
        known += [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return [name for name in dict.fromkeys(known) if name != "self"]
