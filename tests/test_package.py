"""The package as it is installed: its folders, its floors, and an install on a machine without a compiler."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOORS = {"kernels": 0, "core": 1, "vision": 2, "timeseries": 2, "pointcloud": 2}
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def packages_on_disk() -> set[str]:
    top = [*FLOORS, "configs"]
    return {
        "scanweave." + ".".join(path.parent.relative_to(ROOT).parts)
        for name in top
        for path in (ROOT / name).rglob("__init__.py")
    }


def test_every_package_is_installed():
    assert set(PYPROJECT["tool"]["setuptools"]["packages"]) == packages_on_disk()


def test_every_floor_is_typed():
    for name in FLOORS:
        assert (ROOT / name / "py.typed").is_file()
        assert "py.typed" in PYPROJECT["tool"]["setuptools"]["package-data"][f"scanweave.{name}"]


def imported_floors(path: Path) -> set[str]:
    package = path.relative_to(ROOT).parent.parts
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - (node.level - 1)]
            target = (*base, *(node.module or "").split("."))
            found |= {target[0]} if base or node.module else {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("scanweave."):
            found.add((node.module or "").split(".")[1])
    return found & set(FLOORS)


@pytest.mark.parametrize("floor", FLOORS)
def test_imports_go_down_only(floor):
    for path in (ROOT / floor).rglob("*.py"):
        for other in imported_floors(path) - {floor}:
            assert FLOORS[other] < FLOORS[floor], f"{path.relative_to(ROOT)} imports {other}"


def test_install_without_a_compiler_serves_the_cpu_by_the_chunked_form(tmp_path):
    environment = {**os.environ, "CC": "/nonexistent/cc", "CXX": "/nonexistent/c++"}
    source = tmp_path / "source"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "build", "runs", "*.so", "*.egg-info"))
    install = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--no-deps", "--target", str(tmp_path / "site"), str(source)],
        env=environment,
        capture_output=True,
        text=True,
    )
    if "No matching distribution found for setuptools" in install.stdout + install.stderr:
        pytest.skip("pip cannot reach an index to make its build environment")
    assert install.returncode == 0, install.stderr
    code = """
import torch
from scanweave import kernels
from scanweave.kernels import BackendError, linear_scan, served_by
assert kernels.__file__.startswith({site!r}), kernels.__file__
chosen, refusals = served_by("cpu")["linear_scan"]
assert chosen == "chunked", chosen
assert "compiler" in refusals["cpu"], refusals
y, _ = linear_scan(torch.full((1, 3, 1), 0.5), torch.ones(1, 3, 1))
assert y.flatten().tolist() == [1.0, 1.5, 1.75]
try:
    linear_scan(torch.ones(1, 3, 1), torch.ones(1, 3, 1), backend="cpu")
except BackendError as error:
    assert "compiler" in str(error)
else:
    raise SystemExit("a forced backend fell back in silence")
"""
    # -S keeps out the editable install's finder, which would come first; the libraries stay reachable by path.
    path = os.pathsep.join([str(tmp_path / "site"), *[p for p in sys.path if p.endswith("site-packages")]])
    run = subprocess.run(
        [sys.executable, "-S", "-c", code.format(site=str(tmp_path / "site"))],
        env={**os.environ, "PYTHONPATH": path},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
