"""KITTI's files: read, written, refused; real frames beside the tools that are widely used."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from scanweave.core.errors import DataError
from scanweave.pointcloud.kitti import (
    KittiFolder,
    Objects,
    prepare,
    read_calibration,
    read_image_size,
    read_objects,
    read_points,
    write_detections,
)

LABEL = "Car 0.30 1 -0.69 0.00 89.01 314.76 374.00 1.83 1.82 4.35 -4.54 1.42 5.85 -1.35\n"
CALIBRATION = (
    "P2: 700 0 600 45 0 700 180 0 0 0 1 0\nR0_rect: 1 0 0 0 1 0 0 0 1\nTr_velo_to_cam: 0 -1 0 0 0 0 -1 0 1 0 0 -0.3\n"
)


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def tree(root: Path, frames: int = 4) -> Path:
    points = np.array([[20.0, 0, -0.5, 0.5], [20.5, 0.1, -0.4, 0.1], [40.0, 5, 0, 0.2]], dtype="<f4")
    for index in range(frames):
        write(root / f"training/velodyne/{index:06d}.bin", points.tobytes())
        write(root / f"training/calib/{index:06d}.txt", CALIBRATION)
        write(
            root / f"training/label_2/{index:06d}.txt",
            "Car 0 0 0 550 100 650 200 1.6 1.8 4 0 1.3 20 -1.57\n"
            "DontCare -1 -1 -10 1 2 3 4 -1 -1 -1 -1000 -1000 -1000 -10\n",
        )
    return root


def test_labels_keep_double_precision_and_their_columns(tmp_path):
    label = read_objects(write(tmp_path / "a.txt", LABEL + "\n"))
    assert label.names == ("Car",)
    assert label["truncated"].item() == 0.30
    assert label.difficulty().tolist() == [1]
    assert label.camera_boxes.tolist() == [[-4.54, 1.42, 5.85, 4.35, 1.83, 1.82, -1.35]]
    assert label.image_boxes.tolist() == [[0.0, 89.01, 314.76, 374.0]]
    assert len(read_objects(write(tmp_path / "empty.txt", ""))) == 0


def test_detections_come_back_from_their_file_and_none_make_an_empty_one(tmp_path):
    boxes = torch.tensor([[3.0, 1.5, 4.0, 4.2, 1.5, 1.7, 3.0]])
    made = Objects.from_boxes(("Car",), boxes, torch.tensor([[1.0, 2, 3, 4]]), torch.tensor([0.25]))
    assert made["alpha"].item() == pytest.approx(3.0 - math.atan2(3, 4))
    write_detections(tmp_path / "a.txt", made)
    back = read_objects(tmp_path / "a.txt", scored=True)
    torch.testing.assert_close(back.values, made.values, atol=1e-4, rtol=0)
    assert back.names == made.names
    write_detections(tmp_path / "b.txt", Objects((), torch.zeros(0, 15)))
    assert (tmp_path / "b.txt").read_bytes() == b""
    with pytest.raises(DataError, match="'Big car' is not one word"):
        write_detections(tmp_path / "c.txt", Objects(("Big car",), made.values))
    with pytest.raises(DataError, match="not finite"):
        write_detections(tmp_path / "c.txt", Objects(("Car",), made.values * math.nan))
    assert not (tmp_path / "c.txt").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (LABEL + "Car 0.3 1\n", r"a\.txt:2: found 3 columns, expected 15 or 16"),
        (LABEL.replace("89.01", "89,01"), r"a\.txt:1: top is '89,01', expected a finite number"),
        (LABEL.replace("4.35", "nan"), r"a\.txt:1: length is 'nan'"),
        (b"\xff\xfe\x00", r"a\.txt: cannot be read as text"),
    ],
)
def test_malformed_labels_name_file_and_line(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        read_objects(write(tmp_path / "a.txt", content))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (CALIBRATION.replace("P2: 700", "P2:"), r"c\.txt:1: P2 has 11 values, expected 12"),
        (CALIBRATION.replace("R0_rect: 1", "R0_rect: one"), r"c\.txt:2: R0_rect is 'one'"),
        (CALIBRATION.replace("Tr_velo_to_cam", "Tr_velo_cam"), r"no line 'Tr_velo_to_cam'.*did you mean 'Tr_velo_cam'"),
        ("no colon here", r"c\.txt:1: found 'no colon here'"),
        (CALIBRATION.replace("1 0 0 0 1 0 0 0 1", "0 0 0 0 0 0 0 0 0"), r"c\.txt: r0 and tr make a singular"),
    ],
)
def test_malformed_calibrations_name_file_and_line(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        read_calibration(write(tmp_path / "c.txt", content))


def test_scans_that_are_cut_are_refused_and_broken_points_dropped_with_a_count(tmp_path):
    points = np.array([[1, 2, 3, 0.5], [np.nan, 0, 0, 0], [1e30, 0, 0, 0], [4, 5, 6, 1]], dtype="<f4")
    with pytest.raises(DataError, match="63 bytes, expected a multiple of 16"):
        read_points(write(tmp_path / "a.bin", points.tobytes()[:-1]))
    with pytest.warns(UserWarning, match="dropped 2 of 4 points"):
        kept = read_points(write(tmp_path / "b.bin", points.tobytes()))
    assert kept.tolist() == [[1, 2, 3, 0.5], [4, 5, 6, 1]]
    assert read_points(write(tmp_path / "c.bin", b"")).shape == (0, 4)
    with pytest.raises(DataError, match="not a PNG"):
        read_image_size(write(tmp_path / "d.png", b"\xff\xd8\xff"))


def test_incomplete_trees_are_refused(tmp_path):
    with pytest.raises(DataError, match="no folder velodyne, calib, label_2"):
        KittiFolder(tmp_path)
    root = tree(tmp_path / "kitti")
    (root / "training/calib/000002.txt").unlink()
    with pytest.raises(DataError, match=r"no file for 1 of 4 scans, first 000002\.txt"):
        KittiFolder(root)


def test_preparing_needs_neither_images_nor_lists_and_takes_lists_where_given(tmp_path):
    root = tree(tmp_path / "kitti")
    made = prepare(root, tmp_path / "out")
    assert made.frames == {"train": 2, "val": 2}
    assert made.objects == {"Car": 4, "DontCare": 4}
    assert made.stored == {"Car": 2}
    info = json.loads((tmp_path / "out/infos_val.json").read_text())["frames"][0]
    assert info["frame"] == "000001"
    assert [item["points"] for item in info["objects"]] == [2, None]
    with np.load(tmp_path / "out/database.npz") as stored:
        assert stored["first"].tolist() == [0, 2, 4]
        box, points = stored["boxes"][0], stored["points"][:2]
    np.testing.assert_allclose(points[:, :3] + box[:3], [[20, 0, -0.5], [20.5, 0.1, -0.4]], atol=1e-5)
    write(root / "ImageSets/train.txt", "000003\n")
    write(root / "ImageSets/val.txt", "000000\n000001\n")
    assert prepare(root, tmp_path / "out").frames == {"train": 1, "val": 2}
    assert (tmp_path / "out/ImageSets/train.txt").read_text() == "000003\n"
    for text, message in (
        ("000009\n", r"val\.txt:1: there is no scan '000009'"),
        ("000003", "listed already, in train"),
    ):
        write(root / "ImageSets/val.txt", text)
        with pytest.raises(DataError, match=message):
            prepare(root, tmp_path / "out")
    shutil.rmtree(root / "training/label_2")
    with pytest.raises(DataError, match="no folder label_2"):
        prepare(root, tmp_path / "out")


def test_frames_without_objects_make_an_empty_database(tmp_path):
    root = tree(tmp_path / "kitti", frames=2)
    for label in (root / "training/label_2").iterdir():
        label.write_text("")
    assert prepare(root, tmp_path / "out").stored == {}
    with np.load(tmp_path / "out/database.npz") as stored:
        assert stored["boxes"].shape == (0, 7)
        assert stored["first"].tolist() == [0]


def test_points_in_view_of_real_frames_are_those_widely_used_to_the_byte(data_path):
    folder = KittiFolder(data_path("kitti/training").parent)
    golden = json.loads(data_path("kitti/fov_reduced_golden.json").read_text())
    for frame in folder.frames:
        points = folder.points(frame)
        seen = points[folder.calibration(frame).in_view(points, folder.size(frame))]
        assert hashlib.sha256(seen.numpy().astype("<f4").tobytes()).hexdigest() == golden[frame]["sha256"], frame


def test_infos_and_database_of_real_frames_are_those_widely_used(data_path, tmp_path):
    root = data_path("kitti/training").parent
    golden = json.loads(data_path("kitti/openpcdet_infos_golden.json").read_text())
    prepare(root, tmp_path)
    infos = {}
    for split in ("train", "val"):
        infos |= {info["frame"]: info for info in json.loads((tmp_path / f"infos_{split}.json").read_text())["frames"]}
    for wanted in golden["infos"]:
        info, marks = infos[wanted["point_cloud"]["lidar_idx"]], wanted["annos"]
        items = info["objects"]
        assert info["image_size"] == wanted["image"]["image_shape"][::-1]
        assert [item["name"] for item in items] == marks["name"]
        assert [item["difficulty"] for item in items] == marks["difficulty"]
        assert [-1 if item["points"] is None else item["points"] for item in items] == marks["num_points_in_gt"]
        for key, mine in (("bbox", "image_box"), ("alpha", "alpha"), ("truncated", "truncated")):
            np.testing.assert_allclose([item[mine] for item in items], marks[key], atol=1e-4)
        boxes = [item["lidar_box"] for item in items if item["lidar_box"]]
        np.testing.assert_allclose(boxes, marks["gt_boxes_lidar"], atol=1e-5)
    with np.load(tmp_path / "database.npz") as stored:
        counts = dict(zip(zip(stored["frames"], stored["index"], strict=True), np.diff(stored["first"]), strict=True))
    wanted_counts = {
        (item["image_idx"], item["gt_idx"]): item["num_points_in_gt"]
        for of in golden["dbinfos"].values()
        for item in of
    }
    shared = counts.keys() & wanted_counts.keys()
    assert len(shared) == 5
    assert {key: counts[key] for key in shared} == {key: wanted_counts[key] for key in shared}
