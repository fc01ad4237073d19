"""What a domain hands to the command line: a task, its verbs, a demo."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import lightning.pytorch as pl

    from .run import RunFolder
    from .task import Task


@dataclass(frozen=True)
class Session:
    """Everything a configured verb works with.

    Attributes:
        trainer: Lightning's trainer, ready to run.
        model: The task.
        data: Its data module.
        run: The run's folder.
        ckpt_path: The checkpoint to load, or None.
    """

    trainer: pl.Trainer
    model: Task
    data: pl.LightningDataModule
    run: RunFolder
    ckpt_path: str | None


@dataclass(frozen=True)
class Verb:
    """A verb beyond fit, validate, test and predict.

    Attributes:
        function: Its own parameters become options, read from its signature and docstring. A configured verb takes a
            :class:`Session` first.
        help: One line.
        configured: Whether trainer, model and data are configured as for ``test``.
    """

    function: Callable[..., Any]
    help: str
    configured: bool = False


@dataclass(frozen=True)
class TaskSpec:
    """A task of the command line; entry points of the group ``scanweave.tasks`` name one.

    Attributes:
        name: The word after ``scanweave``.
        help: One line.
        module_class: Base class of the task's modules; ``--model`` names a subclass.
        data_class: The data module.
        verbs: Further verbs by name.
        trainer_defaults: Defaults of Trainer arguments, e.g. ``{"max_epochs": 10}``.
        trusted: Further prefixes of class paths that a configuration may name, e.g. ``"mypackage."``.
        subclass_mode_data: Whether ``--data`` names a subclass of ``data_class``.
        default_model: The class taken where ``--model`` is left out; None where it must be named.
    """

    name: str
    help: str
    module_class: type[Task]
    data_class: type[pl.LightningDataModule]
    verbs: Mapping[str, Verb] = field(default_factory=dict)
    trainer_defaults: Mapping[str, Any] = field(default_factory=dict)
    trusted: tuple[str, ...] = ()
    subclass_mode_data: bool = False
    default_model: type[Task] | None = None
