"""Finished models as safetensors and JSON: nothing in them can run code, and a flipped byte is noticed."""

from __future__ import annotations

import hashlib
import inspect
import json
import re
from collections.abc import Sequence
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

from safetensors.torch import load, save

from .errors import ConfigError
from .storage import atomic_file, require_same_layout
from .task import Task

WEIGHTS, DESCRIPTION = "weights.safetensors", "model.json"
_FORMAT = 1


def export(module: Task, folder: str | Path) -> Path:
    """Write a built task's weights and all that is needed to build it again.

    Args:
        module: The task, built; its weights are written as they stand.
        folder: Where ``weights.safetensors`` and ``model.json`` go.

    Returns:
        The folder.

    Raises:
        ConfigError: A file cannot be written.
    """
    folder = Path(folder)
    module.build()
    cls = type(module)
    # The command line adds entries of its own, with a leading underscore.
    given = {key: value for key, value in module.hparams.items() if not key.startswith("_")}
    accepted = _accepted_arguments(cls)
    blob = save({key: value.detach().cpu().clone().contiguous() for key, value in module.state_dict().items()})
    description = {
        "format": _FORMAT,
        "class": f"{cls.__module__}.{cls.__qualname__}",
        "hyper_parameters": {k: v for k, v in given.items() if accepted is None or k in accepted},
        "context": module.context(),
        "weights": {"file": WEIGHTS, "sha256": hashlib.sha256(blob).hexdigest()},
        "versions": {name: metadata.version(name) for name in ("scanweave", "torch", "lightning")},
    }
    with atomic_file(folder / WEIGHTS) as file:
        file.write(blob)
    with atomic_file(folder / DESCRIPTION, "w") as file:
        json.dump(description, file, indent=2)
        file.write("\n")
    return folder


def load_exported(folder: str | Path, trusted: Sequence[str] = ()) -> Task:
    """Read a model written by :func:`export`, in evaluation mode on the CPU.

    Args:
        folder: The folder.
        trusted: Further prefixes of class names that may be imported, e.g. ``"mypackage."``.

    Returns:
        The task with its weights.

    Raises:
        ConfigError: A file is absent or damaged, the weights' sha256 differs, the class may not be imported or is no
            task, or keys and shapes do not fit it.
    """
    folder = Path(folder)
    description = _read_description(folder / DESCRIPTION)
    path = folder / WEIGHTS
    if not path.is_file():
        raise ConfigError(f"{path}: there is no such file; export() writes it beside {DESCRIPTION}")
    blob = path.read_bytes()
    digest, expected = hashlib.sha256(blob).hexdigest(), description["weights"]["sha256"]
    if digest != expected:
        raise ConfigError(
            f"{path}: refused, its sha256 is {digest} and {DESCRIPTION} says {expected}: the file was changed or "
            "damaged; copy the model again"
        )
    module = _import_task(description["class"], folder / DESCRIPTION, trusted)(**description["hyper_parameters"])
    module.set_context(description["context"])
    module.build()
    weights = load(blob)
    require_same_layout(weights, module.state_dict(), str(path))
    module.load_state_dict(weights)
    return module.eval()


def _accepted_arguments(cls: type) -> set[str] | None:
    """Return the names a class's constructor takes, or None where it takes any."""
    parameters = inspect.signature(cls).parameters.values()
    return None if any(p.kind is p.VAR_KEYWORD for p in parameters) else {p.name for p in parameters}


def _read_description(path: Path) -> dict[str, Any]:
    """Read and check a ``model.json``."""
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
        kinds = {"class": str, "hyper_parameters": dict, "context": dict, "weights": dict}
        wrong = [key for key, kind in kinds.items() if not isinstance(description[key], kind)]
        if wrong or description["format"] != _FORMAT or not isinstance(description["weights"]["sha256"], str):
            raise ValueError(f"format {description['format']!r}, wrong entries: {', '.join(wrong) or 'none'}")
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file; name the folder that export() wrote") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: not a model description of format {_FORMAT} ({error})") from error
    return description


def _import_task(name: str, source: Path, trusted: Sequence[str]) -> type[Task]:
    """Import a task class after its name has been checked."""
    allowed = ("scanweave.", *trusted)
    if not re.fullmatch(r"\w+(\.\w+)+", name) or not name.startswith(allowed):
        raise ConfigError(f"{source}: class {name!r} is refused; it may come from {', '.join(allowed)} (see `trusted`)")
    module, _, cls_name = name.rpartition(".")
    try:
        cls = getattr(import_module(module), cls_name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{source}: class {name!r} cannot be imported ({error})") from error
    if not (isinstance(cls, type) and issubclass(cls, Task)):
        raise ConfigError(f"{source}: {name!r} is not a task")
    return cls
