"""The kernels on machines other than this process: other instruction sets, forked workers, GPUs that are not here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from scanweave.kernels import cpu
from scanweave.kernels.cpu import build

from .contract import BACKWARD_BOUND, FORWARD_BOUND, assert_close, draw_reset, expected, gradients
from .table import CASES

ROOT = Path(__file__).resolve().parents[2]
needs_library = pytest.mark.skipif(cpu.library() is None, reason="the C++ kernels were not built")


def _python(*arguments: str, timeout: float = 300, **environment: str) -> str:
    """Run Python in a process of its own and return what it prints; Triton's interpreter is off there."""
    inherited = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env={**inherited, **environment}, capture_output=True, text=True, timeout=timeout
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


SAVE = """
import sys, torch
from tests.kernels.contract import draw_reset, gradients
from tests.kernels.table import CASES
def run(c):
    return gradients(c, c.draw(65, dtype=torch.float32), reset=draw_reset(65), backend="cpu", **c.variants[0])
found = {c.name: run(c) for c in CASES.values()}
torch.save(found, sys.argv[1])
"""


@needs_library
@pytest.mark.parametrize("name", cpu.INSTRUCTION_SETS)
def test_every_instruction_set(name: str, tmp_path: Path) -> None:
    """The libraries for the sets that this processor has agree with the reference."""
    if name not in cpu.usable():
        pytest.skip(f"this processor has no {name}")
    path = tmp_path / "found.pt"
    _python("-c", SAVE, str(path), SCANWEAVE_ISA=name)
    for case, (y, final, grads) in torch.load(path).items():
        wanted = expected(case, 0, 65, torch.float32)
        assert_close(y, wanted[0], FORWARD_BOUND[torch.float32], f"{case}: y")
        assert_close(final, wanted[1], FORWARD_BOUND[torch.float32], f"{case}: final_state")
        for argument, gradient in wanted[2].items():
            assert_close(grads[argument], gradient, BACKWARD_BOUND[torch.float32], f"{case}: gradient of {argument}")


@needs_library
def test_an_unknown_instruction_set_is_named() -> None:
    with pytest.raises(AssertionError, match="SCANWEAVE_ISA='sse9'"):
        _python(
            "-c",
            "import torch, scanweave.kernels as k; k.linear_scan(torch.ones(1, 1, 1), torch.ones(1, 1, 1))",
            SCANWEAVE_ISA="sse9",
        )


FORK = """
import os, signal, torch
from tests.kernels.contract import gradients
from tests.kernels.table import CASES
torch.set_num_threads(4)
cases = sorted(CASES.values(), key=lambda c: c.composed)
drawn = {c.name: c.draw(1000, batch=16, dtype=torch.float32) for c in cases}
before = [gradients(c, drawn[c.name], backend="cpu")[0] for c in cases]
child = os.fork()
if child == 0:
    signal.alarm(60)
    after = []
    with torch.no_grad():
        for c in cases:
            # PyTorch's own threads, which composed ops start, would wait for ever: data-loader workers set this.
            if c.composed:
                torch.set_num_threads(1)
            after.append(c.call(**drawn[c.name], backend="cpu")[0])
    torch.set_num_threads(1)
    os._exit(0 if all(map(torch.equal, after, before)) else 1)
status = os.waitpid(child, 0)[1]
print("exit", os.waitstatus_to_exitcode(status))
"""


@needs_library
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_worker_does_not_hang() -> None:
    assert _python("-c", FORK, timeout=120).split() == ["exit", "0"]


@needs_library
def test_every_set_of_this_architecture_was_built() -> None:
    assert set(cpu.built()) == set(build.instruction_sets())


def test_an_install_without_the_library_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "library", lambda: None)
    assert "install a C++ compiler" in str(cpu.refuses(torch.ones(1)))
    case = CASES["linear_scan"]
    y, _, _ = gradients(case, case.draw(65, dtype=torch.float32), reset=draw_reset(65))
    assert_close(y, expected("linear_scan", 0, 65, torch.float32)[0], FORWARD_BOUND[torch.float32], "y")


@pytest.mark.parametrize("arch", [80, 90])
def test_triton_kernels_compile_for_a_gpu(arch: int) -> None:
    """Every launch of every row compiles for the GPU's architecture and keeps its values in registers."""
    pytest.importorskip("triton.backends.nvidia")
    kernels = [json.loads(line) for line in _python("-m", "tests.kernels.aot", str(arch), timeout=500).splitlines()]
    assert len(kernels) >= 2 * len({case.op for case in CASES.values()})
    assert {k["key"]: k["spills"] for k in kernels if k["spills"] > k["limit"]} == {}
