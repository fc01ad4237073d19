"""A run that is killed and resumed ends with bitwise the state of a run never stopped."""

from __future__ import annotations

import math
import re
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from scanweave.core.storage import read_checkpoint

from .driver import environment, run

FIT = ("tiny", "fit", "--model", "tests.core.tiny.Mlp", "--out", "out")
SIGNAL = "--trainer.callbacks+=tests.core.tiny.Signal"
STOPPING = (
    "--trainer.callbacks+=lightning.pytorch.callbacks.EarlyStopping",
    "--trainer.callbacks.monitor=val/loss",
    "--trainer.callbacks.patience=2",
)
# Everything that has a state: moving average, schedule with warm-up, early stopping, dropout, jitter.
RICH = ("--model.ema=0.9", "--model.schedule=cosine", "--model.warmup_epochs=1", "--trainer.max_epochs=4", *STOPPING)


def same(a: Any, b: Any, place: str = "") -> list[str]:
    """Return the places where two nested states differ, NaN being equal to NaN."""
    if isinstance(a, dict) and isinstance(b, dict):
        lone = [f"{place}.{key} in one only" for key in set(a) ^ set(b)]
        return lone + [line for key in a.keys() & b.keys() for line in same(a[key], b[key], f"{place}.{key}")]
    if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        return [line for i, (x, y) in enumerate(zip(a, b, strict=True)) for line in same(x, y, f"{place}[{i}]")]
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return [] if torch.equal(a, b) else [f"{place}: {a} is not {b}"]
    equal = a == b or (isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b))
    return [] if equal else [f"{place}: {a} is not {b}"]


def final_state(folder: Path) -> dict[str, Any]:
    """Return all that training left behind, but for the bookkeeping of how often it was started."""
    state: dict[str, Any] = {}
    for name in ("last", "best"):
        checkpoint = read_checkpoint(folder / "out" / "checkpoints" / f"{name}.ckpt")
        state[name] = {key: value for key, value in checkpoint.items() if key != "loops"}
        state[name]["hyper_parameters"].pop("_instantiator", None)
    return state


def resume(folder: Path, options: tuple[str, ...]) -> None:
    """Go on with a run; its own config.yaml is used, without the callback that ended it."""
    callbacks = STOPPING if STOPPING[0] in options else ()
    plain = [option for option in options if option not in STOPPING]
    run(*FIT[:2], "--out=out", "--ckpt_path=last", *plain, "--trainer.callbacks=null", *callbacks, folder=folder).ok()


def kill_and_resume(options: tuple[str, ...], batch: int, folder: Path) -> dict[str, Any]:
    striking = (SIGNAL, "--trainer.callbacks.number=9", f"--trainer.callbacks.batch={batch}")
    killed = run(*FIT, *options, *striking, folder=folder)
    assert killed.code == -signal.SIGKILL, killed.err
    resume(folder, options)
    return final_state(folder)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return a function from options to the final state of a run with them that was never stopped."""

    @cache
    def train(options: tuple[str, ...]) -> dict[str, Any]:
        folder = tmp_path_factory.mktemp("whole")
        run(*FIT, *options, folder=folder).ok()
        return final_state(folder)

    return train


@pytest.mark.parametrize(
    ("options", "batch"),
    [
        pytest.param((*RICH, "--checkpoint.steps=1"), 8, id="middle of an epoch"),
        pytest.param((*RICH, "--checkpoint.steps=1"), 9, id="last batch of an epoch"),
        pytest.param((*RICH, "--checkpoint.steps=1"), 10, id="first batch of an epoch"),
        pytest.param((*RICH, "--checkpoint.steps=3"), 14, id="some batches after the checkpoint"),
        pytest.param(RICH, 11, id="end of an epoch"),
        pytest.param(("--trainer.max_steps=13", "--trainer.max_epochs=-1"), 11, id="end, counted in steps"),
        pytest.param(
            ("--trainer.max_steps=13", "--trainer.max_epochs=-1", "--checkpoint.steps=1"), 8, id="middle, in steps"
        ),
        pytest.param(
            ("--trainer.accumulate_grad_batches=2", "--checkpoint.steps=1", "--data.size=64"),
            6,
            id="accumulated gradients",
        ),
        pytest.param(
            ("--trainer.val_check_interval=3", "--checkpoint.steps=1", "--data.size=64"),
            12,
            id="validation inside epochs",
        ),
    ],
)
def test_killed_run_ends_as_the_run_never_stopped(options, batch, tmp_path, whole):
    resumed = kill_and_resume(options, batch, tmp_path)
    # How often a checkpoint is written may not change a result.
    assert same(whole(tuple(o for o in options if not o.startswith("--checkpoint."))), resumed) == []


def test_neither_loader_workers_nor_a_kill_change_the_end(tmp_path, whole):
    def fit(*options: str) -> int:
        # Loader workers need a process that no fork server started: there each takes 5 s to end.
        command = [sys.executable, "-m", "tests.core", *FIT[:2], *options]
        with (tmp_path / "output.txt").open("w") as output:  # a pipe would stay open in orphaned workers
            return subprocess.run(
                command, cwd=tmp_path, env=environment(), stdout=output, stderr=output, check=False, timeout=120
            ).returncode

    options = (*FIT[2:], *RICH, "--data.workers=2", "--checkpoint.steps=1")
    assert fit(*options, SIGNAL, "--trainer.callbacks.number=9", "--trainer.callbacks.batch=8") == -signal.SIGKILL
    assert fit(*options, "--ckpt_path=last", "--trainer.callbacks=null", *STOPPING) == 0
    assert same(whole(RICH), final_state(tmp_path)) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_saves_a_checkpoint_and_says_how_to_go_on(number, tmp_path, whole):
    striking = (SIGNAL, f"--trainer.callbacks.number={int(number)}", "--trainer.callbacks.batch=7")
    stopped = run(*FIT, *RICH, *striking, folder=tmp_path)
    assert stopped.code == 128 + number
    assert "fit --out out --ckpt_path last" in stopped.err
    assert read_checkpoint(tmp_path / "out/checkpoints/last.ckpt")["global_step"] == 8
    resume(tmp_path, RICH)
    assert same(whole(RICH), final_state(tmp_path)) == []


def test_resuming_a_finished_run_changes_nothing(tmp_path):
    # Early stopping ended it: going on for an epoch more would be another run.
    options = (*STOPPING, "--trainer.max_epochs=30", "--model.lr=0.9")
    run(*FIT, *options, folder=tmp_path).ok()
    before = final_state(tmp_path)
    assert before["last"]["resume"]["should_stop"]
    resume(tmp_path, options)
    assert same(before, final_state(tmp_path)) == []


def test_resume_on_another_epoch_count_goes_on(tmp_path):
    run(*FIT, "--trainer.max_epochs=2", folder=tmp_path).ok()
    resume(tmp_path, ("--trainer.max_epochs=3",))
    assert final_state(tmp_path)["last"]["epoch"] == 2
    assert final_state(tmp_path)["last"]["global_step"] == 15


def test_best_checkpoint_follows_the_monitor(tmp_path):
    run(*FIT, "--checkpoint.monitor=val/mae", "--checkpoint.mode=max", folder=tmp_path).ok()
    scores = [read_checkpoint(tmp_path / f"out/checkpoints/{n}.ckpt")["callbacks"] for n in ("best", "last")]
    values = [state["best_score"] for s in scores for key, state in s.items() if "RunCheckpoint" in key]
    assert values[0] == values[1]
    assert read_checkpoint(tmp_path / "out/checkpoints/best.ckpt")["epoch"] == 0  # the error only falls here
    again = run(*FIT, folder=tmp_path)
    assert again.code == 1
    assert "out holds a run already; go on with it by --ckpt_path last" in again.err
    (tmp_path / "typo").mkdir()
    refused = run(*FIT, "--checkpoint.monitor=val/maee", folder=tmp_path / "typo")
    assert refused.code == 1
    assert "did you mean 'val/mae'" in refused.err


@pytest.mark.parametrize("stage", ["loss", "gradient"])
def test_non_finite_stops_and_keeps_the_last_good_checkpoint(stage, tmp_path):
    # The bad row is met in each epoch; the first epoch trains without it.
    run(*FIT, "--trainer.max_epochs=1", folder=tmp_path).ok()
    before = final_state(tmp_path)
    bad = {"loss": "--data.bad_row=3", "gradient": "--model.class_path=tests.core.tiny.InfiniteGradient"}[stage]
    stopped = run(*FIT, "--ckpt_path=last", "--trainer.max_epochs=2", bad, folder=tmp_path)
    assert stopped.code == 1
    assert "NonFiniteError" in stopped.err
    assert "epoch 1" in stopped.err
    named = re.search(r"samples \[([\d, ]+)\]", stopped.err)
    assert named is not None
    if stage == "loss":
        assert "3" in named[1].split(", ")
    assert "Traceback" not in stopped.err
    assert same(before, final_state(tmp_path)) == []
