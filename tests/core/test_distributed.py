"""Two processes end with the metrics of one at the same global batch, and nothing hangs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from .driver import environment, run

# No dropout and no jitter: random draws are each process's own. 43 and 13 rows divide by nothing.
OPTIONS = ("--model=tests.core.tiny.Mlp", "--model.dropout=0", "--data.jitter=0", "--data.size=43", "--out=out")
TWO = ("--trainer.devices=2", "--trainer.strategy=ddp")
LAUNCHERS = {
    "lightning": [sys.executable, "-m", "tests.core"],
    "torchrun": f"{sys.executable} -m torch.distributed.run --standalone --nproc-per-node=2 -m tests.core".split(),
}


@pytest.fixture(scope="module")
def single(tmp_path_factory) -> Path:
    """Return the folder of a run in one process."""
    folder = tmp_path_factory.mktemp("single")
    run("tiny", "fit", *OPTIONS, folder=folder).ok()
    run("tiny", "predict", "--out=out", "--ckpt_path=last", folder=folder).ok()
    return folder


def launch(launcher: str, folder: Path, *arguments: str) -> None:
    command = [*LAUNCHERS[launcher], *arguments]
    with (folder / "output.txt").open("w") as output:
        done = subprocess.run(
            command, cwd=folder, env=environment(), stdout=output, stderr=output, check=False, timeout=200
        )
    assert done.returncode == 0, (folder / "output.txt").read_text()


def test_two_processes_train_as_one(tmp_path, single):
    launch("lightning", tmp_path, "tiny", "fit", *OPTIONS, *TWO)
    expected = json.loads((single / "out/metrics.json").read_text())
    assert json.loads((tmp_path / "out/metrics.json").read_text()) == pytest.approx(expected, abs=1e-5)


def test_two_processes_predict_each_row_once_in_order(tmp_path, single):
    shutil.copytree(single / "out", tmp_path / "out")
    (tmp_path / "out/predictions.npy").unlink()
    launch("torchrun", tmp_path, "tiny", "predict", "--out=out", "--ckpt_path=last", *TWO)
    predictions = [np.load(folder / "out/predictions.npy") for folder in (tmp_path, single)]
    np.testing.assert_allclose(*predictions, atol=1e-5)


def test_launched_processes_need_a_common_folder(tmp_path):
    refused = run("tiny", "fit", *OPTIONS[:-1], folder=tmp_path, WORLD_SIZE="2", RANK="0", LOCAL_RANK="0")
    assert refused.code == 1
    assert "--out" in refused.err
