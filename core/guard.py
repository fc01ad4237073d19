"""Configuration is checked as text, before the parser that imports what it names sees it."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from .errors import ConfigError, nearest

TRUSTED = (
    "scanweave.",
    "lightning.pytorch.callbacks.",
    "lightning.pytorch.loggers.",
    "lightning.pytorch.plugins.",
    "lightning.pytorch.profilers.",
    "lightning.pytorch.strategies.",
    "lightning.pytorch.accelerators.",
    "torch.optim.",
    "torchmetrics.",
)
"""Where classes named by a configuration may come from."""

MAX_BYTES = 1 << 20
MAX_NODES = 100_000

_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
# Values at these keys are always taken as classes by the parser, in short form too.
_CLASS_KEYS = re.compile(
    r"(^|\.)(class_path|init_args|help)$|^(model|data|trainer)$"
    r"|^trainer\.(accelerator|callbacks|logger|plugins|profiler|strategy)(\.\d+)?$"
)


def check_config(path: str | Path, trusted: Sequence[str] = ()) -> None:
    """Check a configuration file without importing anything.

    Args:
        path: YAML or JSON file.
        trusted: Further prefixes of class paths that are allowed.

    Raises:
        ConfigError: The file is absent, too large, not YAML, grows through aliases, or names a class from elsewhere.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"{path}: there is no such configuration file")
    if path.stat().st_size > MAX_BYTES:
        raise ConfigError(f"{path}: refused, {path.stat().st_size} bytes; a configuration has at most {MAX_BYTES}")
    _check_value(_load(path.read_text(encoding="utf-8", errors="replace"), str(path)), "", str(path), trusted)


def check_arguments(arguments: Sequence[str], trusted: Sequence[str] = ()) -> None:
    """Check command-line options without importing anything.

    Args:
        arguments: What follows the verb.
        trusted: Further prefixes of class paths that are allowed.

    Raises:
        ConfigError: An option names a class, or a file that names a class, from elsewhere.
    """
    key = ""
    for argument in arguments:
        if argument.startswith("--"):
            key, has_value, value = argument[2:].partition("=")
            key = key.rstrip("+")
            if not has_value:
                continue
        elif argument.startswith("-c"):
            key, value = "config", argument[2:].removeprefix("=")
            if not value:
                continue
        else:
            value = argument
        if key == "config":
            check_config(value, trusted)
        else:
            _check_value(value, key, f"--{key}" if key else repr(argument), trusted)


def _load(text: str, source: str) -> Any:
    """Parse YAML after measuring what it expands to."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if root is not None:
            _expanded_size(root, source)
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        place = f":{where.line + 1}:{where.column + 1}" if where else ""
        raise ConfigError(f"{source}{place}: not valid YAML ({getattr(error, 'problem', None) or error})") from error
    except RecursionError as error:
        raise ConfigError(f"{source}: refused, nested too deeply") from error


def _expanded_size(root: yaml.Node, source: str) -> int:
    """Return the number of nodes after aliases are expanded; a few lines of aliases can stand for billions."""
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()

    def measure(node: yaml.Node) -> int:
        if id(node) in sizes:
            return sizes[id(node)]
        if id(node) in open_nodes:
            raise ConfigError(f"{source}: refused, an alias refers to the node that contains it")
        open_nodes.add(id(node))
        children: list[yaml.Node] = []
        if isinstance(node, yaml.SequenceNode):
            children = node.value
        elif isinstance(node, yaml.MappingNode):
            children = [part for pair in node.value for part in pair]
        sizes[id(node)] = 1 + sum(measure(child) for child in children)
        if sizes[id(node)] > MAX_NODES:
            raise ConfigError(f"{source}: refused, its aliases expand to more than {MAX_NODES} nodes")
        return sizes[id(node)]

    return measure(root)


def _check_value(value: Any, key: str, source: str, trusted: Sequence[str]) -> None:
    if isinstance(value, dict):
        for name, item in value.items():
            _check_value(item, f"{key}.{name}" if key else str(name), source, trusted)
    elif isinstance(value, list):
        for i, item in enumerate(value):
            _check_value(item, f"{key}.{i}", source, trusted)
    elif isinstance(value, str):
        _check_text(value.strip(), key, source, trusted)


def _check_text(text: str, key: str, source: str, trusted: Sequence[str]) -> None:
    is_class = bool(_CLASS_KEYS.search(key))
    if is_class and "://" in text:
        raise ConfigError(f"{source}: {key} is {text!r}; a configuration is not fetched from the network")
    if text[:1] in "{[" or "\n" in text or re.match(r"[\w.]+:\s", text):
        # The parser reads such strings as YAML in turn.
        nested = _load(text, source) if text[:1] in "{[" or is_class else None
        if not isinstance(nested, str):
            _check_value(nested, key, source, trusted)
        return
    if (is_class or text.endswith((".yaml", ".yml"))) and Path(text).is_file():
        check_config(text, trusted)
    elif _DOTTED.fullmatch(text) and not text.startswith((*TRUSTED, *trusted)) and (is_class or _importable(text)):
        allowed = ", ".join(prefix.rstrip(".") for prefix in (*TRUSTED, *trusted))
        raise ConfigError(
            f"{source}: {key} names {text!r}, which is refused: classes may come from {allowed}. "
            "Nothing was imported. If it is a file, write it with its folder (./...)"
        )


def _importable(dotted: str) -> bool:
    """Whether a top-level package or module of that name exists; finding one runs none of its code."""
    try:
        return importlib.util.find_spec(dotted.split(".")[0]) is not None
    except (ImportError, ValueError):
        return False


def packaged_configs() -> list[str]:
    """Return the names of the configurations that come with the package, such as ``timeseries/tpgn_etth1``."""

    def walk(folder: Any, prefix: str) -> Iterable[str]:
        for item in folder.iterdir():
            if item.is_dir():
                yield from walk(item, f"{prefix}{item.name}/")
            elif item.name.endswith(".yaml"):
                yield prefix + item.name.removesuffix(".yaml")

    return sorted(walk(resources.files("scanweave.configs"), ""))


def find_config(name: str) -> str:
    """Return the file behind ``--config NAME``: a path, or the name of a packaged configuration.

    Args:
        name: A file's path, or a packaged name without its ending.

    Returns:
        The file's path.

    Raises:
        ConfigError: There is neither; offers the nearest packaged name.
    """
    if "://" in name:
        raise ConfigError(f"--config {name}: a configuration is not fetched from the network")
    if Path(name).is_file():
        return name
    known = packaged_configs()
    if name in known:
        return str(resources.files("scanweave.configs").joinpath(name + ".yaml"))
    raise ConfigError(
        f"--config {name}: there is no such file and no packaged configuration of that name{nearest(name, known)}; "
        f"packaged: {', '.join(known) or 'none'}"
    )
