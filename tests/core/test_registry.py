"""Finding mixers: by decorator, by file, by entry point; and what a wrong name or argument is answered."""

from __future__ import annotations

import pkgutil
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import get_args

import pytest
import torch

import scanweave.core.mixers
from scanweave.core import ConfigError, Mixer, cli, create_mixer, list_mixers, register_mixer, registry


class Mean(Mixer):
    """A mixer without parameters, for registration alone."""

    def __init__(self, dim: int, rate: float = 0.5) -> None:
        super().__init__(dim, state_shapes={"mean": (dim,)})
        self.rate = rate

    def mix(self, x, state, reset):
        return x, state


@pytest.fixture(autouse=True)
def _restore(monkeypatch):
    list_mixers()
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))


def test_every_built_in_module_registers_a_mixer():
    names = [name for layout in get_args(registry.Layout) for name in list_mixers(layout)]
    modules = {registry._registered[name].__module__.rpartition(".")[2] for name in names}
    assert {module.name for module in pkgutil.iter_modules(scanweave.core.mixers.__path__)} <= modules
    assert {"gru", "lru", "lstm", "mamba", "mingru", "minlstm", "s5"} <= set(list_mixers())


def test_a_decorated_class_is_created_by_name():
    assert register_mixer("mean")(Mean) is Mean
    assert "mean" in list_mixers()
    mixer = create_mixer("mean", 3, rate=0.25)
    assert isinstance(mixer, Mean)
    assert (mixer.dim, mixer.rate) == (3, 0.25)
    register_mixer("mean")(Mean)


def test_a_taken_name_is_refused():
    with pytest.raises(ConfigError, match=r"'gru' is registered already, by scanweave\.core\.mixers\.gru\.GRU"):
        register_mixer("gru")(Mean)
    assert registry._registered["gru"].__name__ == "GRU"


def test_unknown_name_and_argument_are_answered_with_the_nearest():
    with pytest.raises(ConfigError, match=r"no mixer 'mamab' \(did you mean 'mamba'\?\); there are .*s5"):
        create_mixer("mamab", 8)
    with pytest.raises(ConfigError, match=r"'mamba' has no argument 'dstate' \(did you mean 'd_state'\?\).*d_conv"):
        create_mixer("mamba", 8, dstate=4)
    with pytest.raises(ConfigError, match="'gru' has no argument 'hidden'; it takes none"):
        create_mixer("gru", 8, hidden=4)
    with pytest.raises(ConfigError, match="dim is 0, expected at least 1"):
        create_mixer("gru", 0)


def test_constructors_that_break_the_contract_are_refused():
    class Renamed(Mean):
        def __init__(self, width: int) -> None:
            super().__init__(width)

    class Swallows(Mean):
        def __init__(self, dim: int, **kwargs: int) -> None:
            super().__init__(dim)

    class Demands(Mean):
        def __init__(self, dim: int, rate: float) -> None:
            super().__init__(dim, rate)

    for cls, found in ((Renamed, "width"), (Swallows, "kwargs"), (Demands, "rate")):
        with pytest.raises(TypeError, match=found):
            register_mixer("broken")(cls)
    assert "broken" not in list_mixers()


def test_installed_packages_offer_mixers_by_entry_point(tmp_path, monkeypatch):
    (tmp_path / "other_package.py").write_text(
        "from scanweave.core import Mixer\n"
        "class Echo(Mixer):\n"
        "    def __init__(self, dim):\n"
        "        super().__init__(dim, state_shapes={})\n"
        "    def mix(self, x, state, reset):\n"
        "        return x, state\n"
    )
    info = tmp_path / "other_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[scanweave.mixers]\necho = other_package:Echo\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "echo" in list_mixers()
    assert "other_package" not in sys.modules, "listing names must not import packages"
    x = torch.ones(1, 2, 3)
    assert torch.equal(create_mixer("echo", 3)(x)[0], x)


def test_importing_the_package_loads_no_framework():
    code = "import sys, scanweave.core; print([m for m in ('torch', 'timm', 'lightning') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
    with pytest.raises(AttributeError, match="no attribute 'Blok'"):
        _ = scanweave.core.Blok
    assert {"Block", "Stack", "Mixer"} <= set(dir(scanweave.core))


def test_the_command_line_lists_the_mixers_of_every_layout(capsys, monkeypatch):
    with (Path(__file__).parents[2] / "pyproject.toml").open("rb") as file:
        group = tomllib.load(file)["project"]["entry-points"][cli.MODELS]
    points = {name: EntryPoint(name, value, cli.MODELS) for name, value in group.items() if "mixers" in name}
    monkeypatch.setattr(cli, "entry_points", lambda group: points)
    assert cli.main(["models"]) == 0
    sections = capsys.readouterr().out.split(":\n")
    assert [section.split()[-1] for section in sections[:-1]] == [
        "mixers",
        "grid-mixers",
        "clip-mixers",
        "graph-mixers",
    ]
    for layout, section in zip(get_args(registry.Layout), sections[1:], strict=True):
        assert set(list_mixers(layout)) <= set(section.split()), layout
