"""The command line: what a person types, what they get, and what is refused before anything is imported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from scanweave.core import guard
from scanweave.core.cli import main
from scanweave.core.errors import ConfigError
from scanweave.core.guard import check_arguments, check_config, find_config

from .driver import run
from .tiny import SPEC

MODEL = ("--model", "tests.core.tiny.Mlp")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """Return a folder in which `fit --out out` has run."""
    folder = tmp_path_factory.mktemp("trained")
    run("tiny", "fit", *MODEL, "--out=out", folder=folder).ok()
    return folder


def call(capsys, *arguments: str) -> tuple[int, str, str]:
    code = main(list(arguments), tasks={"tiny": SPEC})
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_fit_leaves_a_whole_run_folder(trained):
    out = trained / "out"
    metrics = json.loads((out / "metrics.json").read_text())
    assert set(metrics) == {"test/loss", "test/mae", "test/mse", "val/loss"}
    assert all(type(value) is float for value in metrics.values())
    assert metrics["test/loss"] == pytest.approx(metrics["test/mse"], rel=1e-6)
    assert {p.name for p in (out / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert (out / "logs/version_0/metrics.csv").exists()
    assert list((out / "logs/version_0").glob("events.out.tfevents.*"))
    assert (out / "figures/training.png").read_bytes()[1:4] == b"PNG"
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["seed_everything"] == 0
    assert config["model"]["init_args"]["hidden_size"] == 8
    assert config["trainer"]["use_distributed_sampler"] is False


def test_verbs_take_the_runs_own_configuration(trained):
    before = json.loads((trained / "out/metrics.json").read_text())
    run("tiny", "test", "--out=out", "--ckpt_path=best", folder=trained).ok()
    assert json.loads((trained / "out/metrics.json").read_text()) == before
    run("tiny", "validate", "--ckpt_path=out/checkpoints/best.ckpt", "--out=other", folder=trained).ok()
    again = json.loads((trained / "other/metrics.json").read_text())
    assert again["val/loss"] == pytest.approx(before["val/loss"], rel=1e-6)
    predicted = run("tiny", "predict", "--out=out", "--ckpt_path=best", folder=trained).ok()
    assert "out/predictions.npy" in predicted.out
    assert np.load(trained / "out/predictions.npy").shape == (13, 1)


def test_configured_verb_gets_the_session_and_its_own_options(trained):
    counted = run("tiny", "count", "--out=out", "--ckpt_path=best", "--scale=3", folder=trained).ok()
    assert "batches 6 of Mlp" in counted.out


def test_checkpoint_of_another_configuration_is_refused_with_keys_and_shapes(trained):
    refused = run("tiny", "test", "--out=out", "--ckpt_path=best", "--model.hidden_size=5", folder=trained)
    assert refused.code == 1
    assert "model.0.weight is (8, 4) in the file, (5, 4) in the model" in refused.err
    assert "Traceback" not in refused.err


def test_absent_checkpoint_is_refused_with_those_there_are(trained):
    refused = run("tiny", "test", *MODEL, "--out=out", "--ckpt_path=out/bets.ckpt", folder=trained)
    assert refused.code == 1
    assert "holds best.ckpt, last.ckpt" in refused.err


def test_plain_verb_reads_its_functions_signature(capsys):
    assert call(capsys, "tiny", "greet", "--name=you", "--times=2") == (0, "hello you\nhello you\n", "")
    code, _, err = call(capsys, "tiny", "greet", "--nmae=you")
    assert code == 2
    assert "did you mean '--name'" in err


def test_help_names_tasks_and_verbs(capsys):
    code, out, _ = call(capsys, "--help")
    assert code == 0
    assert "tiny" in out
    code, out, _ = call(capsys, "tiny", "--help")
    assert code == 0
    assert all(verb in out for verb in ("fit", "validate", "test", "predict", "export", "greet", "count"))


def test_help_imports_no_framework():
    script = "import sys; from scanweave.core.cli import main; main(['--help']); print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert out.endswith("False\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["tiyn", "fit"], "did you mean 'tiny'"),
        (["tiny", "fti"], "did you mean 'fit'"),
        (["tiny", "fit", *MODEL, "--trainer.max_epoch=3"], "did you mean '--trainer.max_epochs'"),
        (["tiny", "fit", *MODEL, "--model.hiden_size=3"], "did you mean 'hidden_size'"),
        (["tiny", "fit", *MODEL, "--data.size=many"], "data.size"),
        (["tiny", "fit", "--model=Mpl"], "did you mean 'Mlp'"),
        (
            ["tiny", "fit", *MODEL, "--conf=x.yaml"],
            "did you mean '--config'",
        ),  # no abbreviations: they dodge the checks
        (["tiny", "test", *MODEL, "--ckpt_path=best"], "needs --out"),
        (["bench", "nothing_like_it"], "benchmark"),
    ],
)
def test_typing_error_is_one_line_with_the_nearest_word(capsys, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    code, _, err = call(capsys, *arguments)
    assert code == 2
    assert said in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []  # nothing is created for a command that is wrong


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("trainer:\n  max_epoch: 3\n", "did you mean 'max_epochs'"),
        ("data:\n  siez: 3\n", "did you mean 'size'"),
        ("modle: Mlp\n", "did you mean 'model'"),
        ("model:\n  class_path: tests.core.tiny.Mlp\n  init_args: {hiden_size: 3}\n", "did you mean 'hidden_size'"),
    ],
)
def test_typing_error_in_yaml_offers_the_nearest_key(capsys, tmp_path, text, said):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    code, _, err = call(capsys, "tiny", "fit", *MODEL, f"--config={path}")
    assert code == 2
    assert said in err


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (BOMB, "aliases expand"),
        ("a: &a [*a]\n", "contains it"),
        ("a: [1\n", r"c\.yaml:2:1: not valid YAML"),
        ("#" * (guard.MAX_BYTES + 1), "at most"),
        ("model: {class_path: os.system}\n", "os.system"),
        ("model: antigravity.Task\n", "antigravity.Task"),
        ("trainer: {logger: subprocess.Popen}\n", "subprocess.Popen"),
        ("trainer: {callbacks: [{class_path: antigravity.X}]}\n", "antigravity.X"),
        ("trainer: {strategy: antigravity.X}\n", "antigravity.X"),
        ("data: {anything: {deep: [antigravity.X]}}\n", "antigravity.X"),
        ('trainer: {callbacks: "{class_path: antigravity.X}"}\n', "antigravity.X"),
        ("model: 'https://example.org/model.yaml'\n", "network"),
    ],
)
def test_foreign_classes_and_bombs_are_refused_before_anything_is_imported(tmp_path, text, said):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said):
        check_config(path)
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize(
    "arguments",
    [
        ["--model=antigravity.Task"],
        ["--model.class_path", "antigravity.Task"],
        ["--model.help", "antigravity.Task"],
        ["--trainer.callbacks+=antigravity.X"],
        ["--trainer", '{"logger": {"class_path": "antigravity.X"}}'],
        ["--config=evil.yaml"],
        ["-c", "evil.yaml"],
        ["-cevil.yaml"],
        ["--model", "evil.yaml"],
        ["--trainer=evil.yaml"],
    ],
)
def test_foreign_classes_on_the_command_line_are_refused(tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    Path("evil.yaml").write_text("class_path: antigravity.Task\n")
    with pytest.raises(ConfigError, match="antigravity"):
        check_arguments(arguments)
    assert "antigravity" not in sys.modules


def test_refusal_reaches_the_command_line(capsys, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("model: {class_path: antigravity.Task}\n")
    code, _, err = call(capsys, "tiny", "fit", f"--config={path}")
    assert code == 1
    assert "Nothing was imported" in err
    assert "antigravity" not in sys.modules


def test_ordinary_values_pass():
    check_arguments(
        ["--data.path=./data/series.csv", "--data.path=my.csv", "--model.lr=0.1", "--trainer.logger=false",
         "--trainer.callbacks+=lightning.pytorch.callbacks.EarlyStopping", "--model", "Mlp", "--data.freq=15min"]
    )  # fmt: skip


def test_configs_are_found_by_name_or_path(tmp_path, monkeypatch):
    monkeypatch.setattr(guard, "packaged_configs", lambda: ["timeseries/tpgn_etth1"])
    assert find_config("timeseries/tpgn_etth1").endswith("configs/timeseries/tpgn_etth1.yaml")
    path = tmp_path / "mine.yaml"
    path.write_text("{}")
    assert find_config(str(path)) == str(path)
    with pytest.raises(ConfigError, match="did you mean 'timeseries/tpgn_etth1'"):
        find_config("timeseries/tpgn_ettm1")
