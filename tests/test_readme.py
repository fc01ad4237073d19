"""What the README says runs: its Python examples, in order, and the commands it names."""

from __future__ import annotations

import re
from pathlib import Path

from scanweave.core.cli import STANDARD_VERBS, entry_points
from scanweave.core.guard import packaged_configs

README = (Path(__file__).resolve().parents[1] / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_python_examples_run():
    examples = blocks("python")
    assert examples
    for example in examples:
        exec(compile(example, "README.md", "exec"), {"__name__": "readme"})


def test_named_tasks_verbs_and_configs_exist():
    tasks = entry_points("scanweave.tasks")
    commands = re.findall(r"^scanweave (\S+) (\S+)(.*)$", "\n".join(blocks("sh")), re.MULTILINE)
    assert commands
    for task, verb, options in commands:
        if task in ("demo", "bench", "models", "doctor"):
            continue
        spec = tasks[task].load()
        assert verb in {*STANDARD_VERBS, *spec.verbs}, f"{task} {verb}"
        for name in re.findall(r"--config (\S+)", options):
            assert name in packaged_configs(), name
