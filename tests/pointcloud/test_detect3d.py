"""``scanweave detect3d``: what it learns and writes on scenes, KITTI's tree and a folder of one's own."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from scanweave.core.cli import main
from scanweave.core.guard import find_config
from scanweave.core.storage import read_checkpoint
from scanweave.pointcloud import list_detectors
from scanweave.pointcloud.cli import DETECT3D
from scanweave.pointcloud.kitti import evaluate_folder, read_image_size, write_scenes
from scanweave.pointcloud.results import COLUMNS, read_table

from .clouds import write_folder

COMMON = ["--trainer.accelerator", "cpu", "--trainer.enable_model_summary", "false", "--data.num_workers", "0"]
TINY = {"dim": 16, "depths": [1, 1], "widths": [16, 32], "up_widths": [16, 16], "pillar_size": [0.4, 0.4]}
SMALL = [*COMMON, "--model.detector", "pointpillars_kitti_small", "--data.batch_size", "2"]
SCENES = ["--data.scenes", "16", "--data.scene", "{azimuths: 128, beams: 32}"]
STREET = ["--model.detector_options", json.dumps(TINY)]


def run(*arguments: str) -> int:
    return main(["detect3d", *arguments], {"detect3d": replace(DETECT3D, trusted=("tests.core.tiny.",))})


def weights(out: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(out / "checkpoints" / "last.ckpt")["state_dict"]


def test_scenes_are_the_default(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert run("fit", *SMALL, *SCENES, *STREET, "--out", str(out), "--trainer.max_epochs", "2") == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert {"test/ap", "test/loss", "val/ap"} <= set(metrics)
    assert 0 <= metrics["test/ap"] <= 100
    table = pd.read_csv(out / "ap.csv")
    assert len(table) == 3 * 4 * 2  # classes, metrics, recall positions
    assert list(table.columns) == ["class", "metric", "recalls", "easy", "moderate", "hard"]
    assert sorted(path.name for path in (out / "detections").iterdir()) == ["000014.txt", "000015.txt"]
    assert read_image_size(out / "figures" / "000014.png")[0] == 1350


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("data") / "kitti", 8, azimuths=128, beams=32)


@pytest.fixture(scope="module")
def trained(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained")
    lower = {**TINY, "suppression": None}
    options = ["--model.detector_options", json.dumps(lower), "--trainer.max_epochs", "2"]
    assert run("fit", *SMALL, *options, "--data.root", str(tree), "--out", str(out)) == 0
    return out


def test_a_kitti_tree_is_prepared_and_trained_on(tree: Path, tmp_path: Path, capsys) -> None:
    prepared = tmp_path / "prepared"
    folder = ["--data.root", str(tree), "--data.prepared", str(prepared)]
    assert run("prepare", *COMMON, *folder, "--out", str(tmp_path / "first")) == 0
    assert "frames: 6 for train, 2 for val" in capsys.readouterr().out
    assert {path.name for path in prepared.iterdir()} == {
        "ImageSets", "database.npz", "infos_train.json", "infos_val.json",
    }  # fmt: skip
    assert run("fit", *SMALL, *STREET, *folder, "--out", str(tmp_path / "run"), "--trainer.max_epochs", "1") == 0
    assert run("prepare", *COMMON, "--out", str(tmp_path / "none")) == 1
    assert "made-up scenes need no preparation" in capsys.readouterr().err


def test_predictions_of_clouds_alone_and_of_calibrated_frames(tree: Path, trained: Path, tmp_path: Path) -> None:
    clouds = tmp_path / "clouds"
    clouds.mkdir()
    for name in ("000001", "000002"):
        (clouds / f"{name}.bin").write_bytes((tree / "training" / "velodyne" / f"{name}.bin").read_bytes())
    (clouds / "empty.bin").write_bytes(b"")
    checkpoint = ["--ckpt_path", str(trained / "checkpoints" / "last.ckpt"), *COMMON]
    out = tmp_path / "alone"
    assert run("predict", *checkpoint, "--data.root", str(clouds), "--out", str(out)) == 0
    table = pd.read_csv(out / "predictions.csv", dtype={"frame": str})
    assert list(table.columns) == list(COLUMNS)
    assert "empty" not in set(table["frame"])
    assert not (out / "detections").exists()
    whole = tmp_path / "calibrated"
    assert run("predict", *checkpoint, "--data.root", str(tree), "--out", str(whole)) == 0
    assert len(list((whole / "detections").glob("*.txt"))) == 8
    assert set(evaluate_folder(tree / "training" / "label_2", whole / "detections")) == {"Car", "Pedestrian", "Cyclist"}
    assert read_table(whole / "predictions.csv", "000001").shape[1] == 7


def test_a_frame_without_points_gives_an_empty_result_file(tree: Path, trained: Path, tmp_path: Path) -> None:
    root = tmp_path / "kitti"
    for name in ("velodyne", "calib"):
        (root / "testing" / name).mkdir(parents=True)
    (root / "testing" / "velodyne" / "000000.bin").write_bytes(b"")
    calibration = (tree / "training" / "calib" / "000000.txt").read_text()
    (root / "testing" / "calib" / "000000.txt").write_text(calibration)
    checkpoint = ["--ckpt_path", str(trained / "checkpoints" / "last.ckpt"), *COMMON]
    out = tmp_path / "out"
    assert run("predict", *checkpoint, "--data.root", str(root), "--out", str(out)) == 0
    assert (out / "detections" / "000000.txt").read_text() == ""
    assert len(pd.read_csv(out / "predictions.csv")) == 0


def test_view_draws_labels_and_detections(tree: Path, tmp_path: Path, capsys) -> None:
    found = tmp_path / "found"
    found.mkdir()
    label = (tree / "training" / "label_2" / "000003.txt").read_text()
    (found / "000003.txt").write_text("".join(f"{line} 0.9\n" for line in label.splitlines()))
    out = ["--data.root", str(tree), "--out", str(tmp_path / "run"), *COMMON]
    assert run("view", "--frame", "000003", "--detections", str(found), *out) == 0
    assert (tmp_path / "run" / "figures" / "000003.png").stat().st_size > 10_000
    assert run("view", "--frame", "00003", *out) == 1
    assert "there is no frame '00003' (did you mean '000003'?)" in capsys.readouterr().err
    assert run("view", "--frame", "000003", "--point_range", "[1, 2]", *out) == 1
    assert "--point_range has 2 numbers, expected 6" in capsys.readouterr().err


def test_images_get_boxes_on_them(data_path, tmp_path: Path) -> None:
    root = data_path("kitti/training").parent
    names = sorted(path.stem for path in (root / "training" / "image_2").glob("*.png"))
    out = ["--data.root", str(root), "--out", str(tmp_path / "run"), *COMMON]
    assert run("view", "--frame", names[0], *out) == 0
    drawn = tmp_path / "run" / "figures" / f"{names[0]}_image.png"
    assert read_image_size(drawn)[0] == 1800


def test_classes_of_ones_own_without_calibration(tmp_path: Path, capsys) -> None:
    root, out = write_folder(tmp_path / "own", 12), tmp_path / "run"
    options = {**TINY, "point_range": [0, -12.8, -1, 25.6, 12.8, 3]}
    arguments = [*SMALL, "--data.root", str(root), "--model.detector_options", json.dumps(options)]
    assert run("fit", *arguments, "--out", str(out), "--trainer.max_epochs", "2") == 0
    table = pd.read_csv(out / "ap.csv")
    assert set(table["class"]) == {"Barrel", "Pallet"}
    assert set(table["metric"]) == {"bev", "3d"}
    checkpoint = ["--out", str(out), "--ckpt_path", "last", "--data.root", str(root / "points")]
    assert run("predict", *checkpoint) == 0
    assert (out / "predictions.csv").is_file()
    wrong = ["--model.least_overlap", "{Barel: 0.3}", "--out", str(tmp_path / "wrong")]
    assert run("fit", *arguments, *wrong) == 1
    assert "expected shares between 0 and 1 of Barrel, Pallet" in capsys.readouterr().err


def test_a_resumed_run_ends_with_the_same_weights(tree: Path, tmp_path: Path) -> None:
    arguments = [*SMALL, *STREET, "--data.root", str(tree)]
    whole = ["--out", str(tmp_path / "whole"), "--trainer.max_epochs", "3"]
    assert run("fit", *arguments, *whole) == 0
    stop = ["--trainer.callbacks", "tests.core.tiny.Signal", "--trainer.callbacks.number", "15"]
    cut = ["--out", str(tmp_path / "cut")]
    # Stopped after the second of the second epoch's three batches.
    assert (
        run("fit", *arguments, *cut, "--trainer.max_epochs", "3", *stop, "--trainer.callbacks.batch", "4") == 128 + 15
    )
    assert run("fit", *cut, "--ckpt_path", "last", "--trainer.callbacks", "null") == 0
    expected, found = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_frames_without_boxes_train(tmp_path: Path) -> None:
    root = write_scenes(tmp_path / "kitti", 4, azimuths=64, beams=16, objects=0)
    np.zeros((0, 4), dtype="<f4").tofile(root / "training" / "velodyne" / "000000.bin")
    arguments = [*SMALL, *STREET, "--data.root", str(root), "--out", str(tmp_path / "run")]
    assert run("fit", *arguments, "--trainer.max_epochs", "1") == 0
    assert np.isfinite(json.loads((tmp_path / "run" / "metrics.json").read_text())["test/loss"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model.detector", "lion_mamba_kiti"], "did you mean 'lion_mamba_kitti'?"),
        (["--data.classes", "[Van]"], "there are no anchors for 'Van'"),
        (["--data.scenes", "4"], "--data.scenes is 4, expected at least 8"),
        (["--model.detector_options", "{dims: 3}"], "has no argument 'dims' (did you mean 'dim'?)"),
        (["--data.val_share", "0.7"], "--data.val_share is 0.7; expected a share between 0 and 0.5"),
        (["--trainer.max_epochs", "-1"], "one_cycle needs to know the run's length"),
    ],
)
def test_wrong_settings_are_named(tmp_path: Path, capsys, options: list[str], message: str) -> None:
    assert run("fit", *SMALL, *SCENES, *options, "--out", str(tmp_path / "run")) in (1, 2)
    assert message in capsys.readouterr().err


def test_every_detector_has_a_configuration() -> None:
    for name in list_detectors():
        if name != "lion_kitti_small":
            text = Path(find_config(f"pointcloud/{name}")).read_text()
            assert f"detector: {name}" in text
