"""Files that are whole or absent, checkpoints that run no code, exports that notice a flipped byte."""

from __future__ import annotations

import json
import os
import pickle
import resource

import pytest
import torch

from scanweave.core.checkpoint import export, load_exported
from scanweave.core.errors import ConfigError
from scanweave.core.storage import CheckpointStore, atomic_file, read_checkpoint

from .driver import run
from .tiny import Mlp

TRUSTED = ("tests.core.tiny.",)
FULL = ("--trainer.callbacks+=tests.core.tiny.FullDisk", "--trainer.callbacks.epoch=1", "--trainer.callbacks.size=9000")


class Evil:
    """Runs a command where it is unpickled."""

    def __reduce__(self):
        return os.system, ("touch pwned",)


def test_a_failed_write_leaves_the_former_file_and_no_rest(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_file(path, "w") as file:
        file.write(f"half {1 / 0}")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_full_disk_is_said_and_the_former_checkpoint_stays(tmp_path):
    path = tmp_path / "last.ckpt"
    CheckpointStore().save_checkpoint({"state_dict": {"w": torch.ones(3)}}, path)
    former = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(ConfigError, match=r"File too large.*former file is whole"):
            CheckpointStore().save_checkpoint({"state_dict": {"w": torch.ones(30000)}}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == former
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_training_on_a_full_disk_ends_with_an_error_and_a_resumable_checkpoint(tmp_path):
    fit = ("tiny", "fit", "--model", "tests.core.tiny.Mlp", "--out=out")
    full = run(*fit, *FULL, folder=tmp_path)
    assert full.code == 1
    assert "cannot be written (File too large)" in full.err
    assert "Traceback" not in full.err
    assert {p.name for p in (tmp_path / "out/checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert read_checkpoint(tmp_path / "out/checkpoints/last.ckpt")["epoch"] == 0
    run("tiny", "fit", "--out=out", "--ckpt_path=last", "--trainer.callbacks=null", folder=tmp_path).ok()
    assert read_checkpoint(tmp_path / "out/checkpoints/last.ckpt")["epoch"] == 2


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "out").write_text("a file, not a folder")
    refused = run("tiny", "fit", "--model", "tests.core.tiny.Mlp", "--out=out", folder=tmp_path)
    assert refused.code == 1
    assert "cannot be written" in refused.err
    assert "Traceback" not in refused.err


def test_pickled_objects_are_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {}, "callback": Evil()}, "zip.ckpt")
    with pytest.raises(ConfigError, match=r"refused.*\bsystem"):
        read_checkpoint("zip.ckpt")
    with open("plain.ckpt", "wb") as file:
        pickle.dump({"state_dict": Evil()}, file)
    with pytest.raises(ConfigError, match="not a readable checkpoint"):
        read_checkpoint("plain.ckpt")
    assert not os.path.exists("pwned")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"<html>not found</html>"])
def test_damaged_checkpoints_are_refused_by_name(tmp_path, content):
    path = tmp_path / "last.ckpt"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"last\.ckpt: not a readable checkpoint"):
        read_checkpoint(path)


def test_other_files_and_absent_files_are_refused(tmp_path):
    torch.save({"weights": 1}, tmp_path / "other.pt")
    with pytest.raises(ConfigError, match="no 'state_dict'"):
        read_checkpoint(tmp_path / "other.pt")
    with pytest.raises(ConfigError, match="no such checkpoint"):
        read_checkpoint(tmp_path / "absent.ckpt")


@pytest.fixture
def exported(tmp_path):
    """Return an exported model and its folder."""
    task = Mlp(hidden_size=6)
    export(task, tmp_path / "model")
    return task.eval(), tmp_path / "model"


def edit(folder, **changes):
    path = folder / "model.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_export_gives_the_same_model_back(exported):
    task, folder = exported
    x = torch.randn(5, 4)
    again = load_exported(folder, trusted=TRUSTED)
    assert not again.training
    assert torch.equal(again(x), task(x))
    assert again.hparams["hidden_size"] == 6


def test_flipped_byte_is_refused(exported):
    _, folder = exported
    blob = bytearray((folder / "weights.safetensors").read_bytes())
    blob[-1] ^= 1
    (folder / "weights.safetensors").write_bytes(blob)
    with pytest.raises(ConfigError, match="sha256"):
        load_exported(folder, trusted=TRUSTED)


@pytest.mark.parametrize("name", ["os.system", "tests.core.tiny.Mlp", "subprocess.Popen", "nodots"])
def test_exports_naming_foreign_classes_are_refused(exported, name):
    edit(exported[1], **{"class": name})
    with pytest.raises(ConfigError, match="refused"):
        load_exported(exported[1])


@pytest.mark.parametrize(
    ("name", "said"),
    [("scanweave.core.storage.read_checkpoint", "not a task"), ("scanweave.core.task.Tsak", "cannot be imported")],
)
def test_exports_naming_no_task_are_refused(exported, name, said):
    edit(exported[1], **{"class": name})
    with pytest.raises(ConfigError, match=said):
        load_exported(exported[1])


def test_exports_of_other_shapes_list_them(exported):
    edit(exported[1], hyper_parameters={"hidden_size": 7})
    with pytest.raises(ConfigError, match=r"model\.0\.weight is \(6, 4\) in the file, \(7, 4\) in the model"):
        load_exported(exported[1], trusted=TRUSTED)


def test_damaged_descriptions_are_refused(exported):
    (exported[1] / "model.json").write_text("{}")
    with pytest.raises(ConfigError, match="not a model description"):
        load_exported(exported[1])
    (exported[1] / "model.json").unlink()
    with pytest.raises(ConfigError, match="no such file"):
        load_exported(exported[1])


def test_export_verb_writes_the_averaged_weights_of_the_best_checkpoint(tmp_path):
    run("tiny", "fit", "--model", "tests.core.tiny.Mlp", "--out=out", "--model.ema=0.9", folder=tmp_path).ok()
    run("tiny", "export", "--out=out", "--ckpt_path=best", folder=tmp_path).ok()
    saved = read_checkpoint(tmp_path / "out/checkpoints/best.ckpt")
    weights = load_exported(tmp_path / "out/export", trusted=TRUSTED).state_dict()
    assert all(torch.equal(weights[key], saved["state_dict"][key]) for key in weights)
    assert not torch.equal(weights["model.0.weight"], saved["current_model_state"]["model.0.weight"])
