"""The command line: ``scanweave TASK VERB``; tasks come from entry points, so this file knows no domain.

PyTorch and Lightning are imported where a task runs, so that help and typing errors answer at once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Any

from .errors import ConfigError, DataError, nearest

if TYPE_CHECKING:
    from .spec import TaskSpec

TASKS = "scanweave.tasks"
DEMOS = "scanweave.demos"
MODELS = "scanweave.models"

STANDARD_VERBS = {
    "fit": "train, then test the best checkpoint",
    "validate": "measure a checkpoint on the validation set",
    "test": "measure a checkpoint on the test set",
    "predict": "write a checkpoint's predictions",
    "export": "write a checkpoint's weights as safetensors and JSON",
}
_COMMANDS = {
    "demo": "a first result in a minute or two, on made-up data",
    "models": "the names that --model, mixers and timm.create_model take",
    "doctor": "versions, devices, and which backend serves each op",
    "bench": "time the ops and models beside their peers",
}


class UsageError(Exception):
    """The command line cannot be understood; the message says what would be."""


def entry_points(group: str) -> dict[str, metadata.EntryPoint]:
    """Return a group's entry points by name, sorted, none of them loaded."""
    return {point.name: point for point in sorted(metadata.entry_points(group=group), key=lambda p: p.name)}


def main(argv: Sequence[str] | None = None, tasks: Mapping[str, TaskSpec] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        argv: Arguments; by default the process's.
        tasks: Task specifications by name; by default those of the installed entry points.

    Returns:
        0; 1 where data, a setting or a file is wrong; 2 where the command line is; 128 + n where signal n stopped a
        run after its checkpoint was saved.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(arguments, tasks)
    except UsageError as error:
        print(f"scanweave: {error}", file=sys.stderr)
        return 2
    except (ConfigError, DataError, ArithmeticError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _dispatch(arguments: list[str], tasks: Mapping[str, TaskSpec] | None) -> int:
    known: Mapping[str, Any] = entry_points(TASKS) if tasks is None else tasks
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview(known))
        return 0
    word, rest = arguments[0], arguments[1:]
    if word == "--version":
        print(f"scanweave {metadata.version('scanweave')}")
        return 0
    if word in _COMMANDS:
        return _COMMAND_FUNCTIONS[word](rest)
    if word not in known:
        raise UsageError(f"there is no task or command {word!r}{nearest(word, [*known, *_COMMANDS])}; {_listed(known)}")
    spec: TaskSpec = known[word].load() if tasks is None else known[word]
    verbs = {**STANDARD_VERBS, **{name: verb.help for name, verb in spec.verbs.items()}}
    if not rest or rest[0] in ("-h", "--help"):
        print(_task_overview(spec.name, spec.help, verbs))
        return 0
    verb, options = rest[0], rest[1:]
    if verb not in verbs:
        raise UsageError(f"{word} has no verb {verb!r}{nearest(verb, verbs)}; verbs: {', '.join(verbs)}")
    from .session import run_verb

    return run_verb(spec, verb, options)


def _listed(known: Mapping[str, Any]) -> str:
    return f"tasks: {', '.join(known) or 'none installed'}; commands: {', '.join(_COMMANDS)}"


def _table(rows: Mapping[str, str]) -> str:
    width = max(map(len, rows), default=0)
    return "\n".join(f"  {name:<{width}}  {text}" for name, text in rows.items())


def _overview(known: Mapping[str, Any]) -> str:
    tasks = {name: f"scanweave {name} --help" for name in known}
    return (
        "usage: scanweave TASK VERB [options]   or   scanweave COMMAND\n\n"
        f"tasks:\n{_table(tasks) or '  none installed'}\n\ncommands:\n{_table(_COMMANDS)}\n"
    )


def _task_overview(name: str, help_text: str, verbs: Mapping[str, str]) -> str:
    return (
        f"usage: scanweave {name} VERB [options]\n\n{help_text}\n\nverbs:\n{_table(verbs)}\n\n"
        f"scanweave {name} fit --help lists the options; --config takes a file or a packaged name; "
        "--print_config shows the result.\n"
    )


def _demo(arguments: list[str]) -> int:
    """Run a demo; the first one when none is named."""
    demos = entry_points(DEMOS)
    if not demos:
        raise UsageError("no demo is installed")
    name = arguments[0] if arguments and not arguments[0].startswith("-") else next(iter(demos))
    if arguments and arguments[0] in ("-h", "--help"):
        print(f"usage: scanweave demo [{'|'.join(demos)}] [options]")
        return 0
    if name not in demos:
        raise UsageError(f"there is no demo {name!r}{nearest(name, demos)}; demos: {', '.join(demos)}")
    from .session import run_function

    return run_function(demos[name].load(), arguments[1:] if arguments[:1] == [name] else arguments, f"demo {name}")


def _models(arguments: list[str]) -> int:
    """List what each entry point of the group ``scanweave.models`` returns: names by heading."""
    if arguments and arguments[0] in ("-h", "--help"):
        print("usage: scanweave models [FILTER]   lists the names that contain FILTER")
        return 0
    wanted = arguments[0] if arguments else ""
    found = False
    for heading, point in entry_points(MODELS).items():
        names = [name for name in point.load()() if wanted in name]
        if names:
            found = True
            print(f"{heading}:")
            print("\n".join(f"  {name}" for name in sorted(names)))
    if not found:
        raise UsageError(f"no model's name contains {wanted!r}" if wanted else "no models are installed")
    return 0


def _doctor(arguments: list[str]) -> int:
    """Print the report of :func:`scanweave.core.doctor.report`."""
    if arguments:
        raise UsageError("doctor takes no options")
    from .doctor import report

    print(report())
    return 0


def _bench(arguments: list[str]) -> int:
    """Run the benchmarks of a source checkout with pytest."""
    from .doctor import run_benchmarks

    return run_benchmarks(arguments)


_COMMAND_FUNCTIONS: dict[str, Callable[[list[str]], int]] = {
    "demo": _demo,
    "models": _models,
    "doctor": _doctor,
    "bench": _bench,
}


if __name__ == "__main__":
    sys.exit(main())
