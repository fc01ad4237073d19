"""Frames from files of one's own: formats, labels, lists, and what is said of those that are malformed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from scanweave.core import ConfigError, DataError
from scanweave.pointcloud.data import Detect3dData
from scanweave.pointcloud.formats import read_cloud
from scanweave.pointcloud.kitti import write_scenes
from scanweave.pointcloud.sources import CloudSource, FolderSource, KittiSource, SceneSource

from ..installed import import_peer
from .clouds import BOX, write_folder


def test_formats_give_the_same_points(tmp_path: Path) -> None:
    points = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    points[:, 3] = np.round(np.abs(points[:, 3]).clip(0, 1) * 65535) / 65535
    points.tofile(tmp_path / "a.bin")
    np.save(tmp_path / "a.npy", points)
    laspy, pypcd4 = import_peer("laspy"), import_peer("pypcd4")
    header = laspy.LasHeader(point_format=0)
    header.scales = [1e-5] * 3
    cloud = laspy.LasData(header)
    cloud.x, cloud.y, cloud.z = points[:, :3].astype(np.float64).T
    cloud.intensity = np.round(points[:, 3] * 65535).astype(np.uint16)
    cloud.write(tmp_path / "a.las")
    pypcd4.PointCloud.from_xyzi_points(points).save(tmp_path / "a.pcd")
    for ending in ("bin", "npy", "pcd", "las"):
        found = read_cloud(tmp_path / f"a.{ending}")
        assert found.dtype == torch.float32
        np.testing.assert_allclose(found.numpy(), points, atol=1e-5, err_msg=ending)


def test_missing_values_are_0_and_further_ones_kept(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(10.0).reshape(2, 5))
    assert read_cloud(tmp_path / "a.npy", features=5).tolist() == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    np.save(tmp_path / "b.npy", np.ones((2, 3)))
    assert read_cloud(tmp_path / "b.npy").tolist() == [[1, 1, 1, 0]] * 2


def test_points_that_are_not_finite_are_dropped_and_counted(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([[1.0, 2, 3, 0], [np.nan, 0, 0, 0], [1e30, 0, 0, 0], [0, 0, 0, np.inf]]))
    with pytest.warns(UserWarning, match=r"a\.npy: dropped 3 of 4 points"):
        assert read_cloud(tmp_path / "a.npy").tolist() == [[1, 2, 3, 0]]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.bin", b"123456789", r"a\.bin: 9 bytes, expected a multiple of 16"),
        ("a.npy", b"no array", r"a\.npy: cannot be read as \.npy"),
        ("a.pcd", b"no cloud", r"a\.pcd: cannot be read as \.pcd"),
        ("a.las", b"no cloud", r"a\.las: cannot be read as \.las"),
        ("a.xyz", b"1 2 3", r"a\.xyz: found the ending '\.xyz', expected one of \.bin, \.npy"),
    ],
)
def test_files_that_are_no_clouds_are_refused_by_name(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    import_peer("laspy"), import_peer("pypcd4")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_cloud(tmp_path / name)


def test_arrays_of_another_shape_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((4, 2)))
    with pytest.raises(DataError, match=r"float64 of shape \(4, 2\), expected numbers \(points, 3 or more\)"):
        read_cloud(tmp_path / "a.npy")


@pytest.mark.parametrize("as_table", [False, True])
def test_a_folder_of_ones_own(tmp_path: Path, as_table: bool) -> None:
    root = write_folder(tmp_path / "own", 10, as_table=as_table)
    source = FolderSource(str(root), 4, (0.2, 0.2), seed=0)
    assert [len(source.parts[part]) for part in ("train", "val", "test")] == [6, 2, 2]
    assert sorted(i for part in source.parts.values() for i in part) == list(range(10))
    frame = source.read(3)
    assert frame.name == "f03"
    assert set(frame.names) <= {"Barrel", "Pallet"}
    assert frame.boxes.shape == (len(frame.names), 7)
    assert source.read(0).boxes.shape == (0, 7)  # the frame without objects
    assert len(source.describe(3).points) == 0
    (root / "train.txt").write_text("f01\nf02\n\n")
    (root / "val.txt").write_text("f03\n")
    listed = FolderSource(str(root), 4, (0.2, 0.2), seed=0)
    assert listed.parts == {"train": [1, 2], "val": [3], "test": [3]}


def test_what_is_wrong_with_a_folder_is_said_by_file_and_place(tmp_path: Path) -> None:
    def read(root: Path) -> FolderSource:
        return FolderSource(str(root), 4, (0.2, 0.2), seed=0)

    with pytest.raises(DataError, match="points: no such folder"):
        read(tmp_path)
    root = write_folder(tmp_path / "own", 4)
    label = root / "labels" / "f01.json"
    for content, message in (
        ("{", r"f01\.json: cannot be read as JSON"),
        ("{}", r"f01\.json: found a dict, expected a list of"),
        ('[{"class": "Barrel"}]', r"f01\.json: entry 0 is .*, expected a list of"),
        (json.dumps([{"class": "Barrel", "box": BOX[:6]}]), r"f01\.json: entry 0: the box is .*, expected seven"),
        (json.dumps([{"class": "Barrel", "box": [*BOX[:5], 0, 0]}]), r"height \(above 0\)"),
    ):
        label.write_text(content)
        with pytest.raises(DataError, match=message):
            read(root)
    label.unlink()
    with pytest.raises(DataError, match=r"labels: no file for 1 of 4 clouds, first f01\.json"):
        read(root)
    label.write_text("[]")
    (root / "train.txt").write_text("f00\nf9\n")
    with pytest.raises(DataError, match=r"train\.txt:2: there is no cloud 'f9'"):
        read(root)
    (root / "train.txt").write_text("f00\n")
    with pytest.raises(DataError, match=r"found lists for train alone, expected train\.txt and val\.txt"):
        read(root)
    (root / "points" / "f00.npy").write_bytes(b"")
    with pytest.raises(DataError, match="found several files named f00"):
        read(root)


def test_what_is_wrong_with_a_table_is_said_by_line(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "own", 4, as_table=True)
    table = root / "boxes.csv"
    head = "frame,class,x,y,z,length,width,height,heading\n"
    for content, message in (
        ("frame,class,x\n", r"boxes\.csv: found the columns frame, class, x; missing: y, z"),
        (head + "f01,Barrel,1,2,3,1,1,1,0\nf77,Barrel,1,2,3,1,1,1,0\n", r"boxes\.csv:3: there is no cloud 'f77'"),
        (head + "f01,Barrel,1,2,3,1,one,1,0\n", r"boxes\.csv:2: the box is"),
        (head + "f01,,1,2,3,1,1,1,0\n", r"boxes\.csv:2: the box has no class"),
    ):
        table.write_text(content)
        with pytest.raises(DataError, match=message):
            FolderSource(str(root), 4, (0.2, 0.2), seed=0)


def test_scenes_are_made_once_and_divided() -> None:
    source = SceneSource(16, seed=3, azimuths=64, objects=4)
    assert [len(source.parts[part]) for part in ("train", "val", "test")] == [12, 2, 2]
    assert source.read(5) is source.read(5)
    assert len(source.describe(5).points) == 0
    with pytest.raises(
        DataError, match=r"has 'azimut' \(did you mean 'azimuths'\?\); it takes objects, beams, azimuths"
    ):
        SceneSource(16, azimut=3)


def test_kitti_frames_hold_what_the_camera_sees(tmp_path: Path) -> None:
    root = write_scenes(tmp_path / "kitti", 4, azimuths=128)
    source = KittiSource(str(root))
    assert source.parts == {"train": [0, 1, 2], "val": [3], "test": [3]}
    frame = source.read(1)
    whole = source.folder.points("000001")
    assert 0 < len(frame.points) < len(whole)
    assert frame.camera[0].in_view(frame.points, frame.camera[1]).all()
    assert len(frame.names) == len(frame.boxes)


def test_one_cloud_and_a_folder_of_clouds(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "own", 3)
    assert CloudSource(str(root / "points"), 4).names == ["f00", "f01", "f02"]
    assert CloudSource(str(root / "points" / "f01.bin"), 4).names == ["f01"]
    with pytest.raises(DataError, match="holds no cloud"):
        CloudSource(str(tmp_path), 4)


def test_classes_and_anchors_come_from_the_training_frames(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "own", 12)
    data = Detect3dData(str(root), num_workers=0, batch_size=2)
    data.setup()
    assert set(data.classes) == {"Barrel", "Pallet"}
    barrel = next(anchor for anchor in data.anchors if anchor.name == "Barrel")
    assert barrel.size == pytest.approx((BOX[3], BOX[4], BOX[5]), abs=1e-3)
    assert barrel.bottom == pytest.approx(BOX[2] - BOX[5] / 2, abs=1e-3)
    with pytest.raises(DataError, match=r"no training frame has a 'Barel' \(did you mean 'Barrel'\?\)"):
        Detect3dData(str(root), classes=["Barel"]).setup()
    with pytest.raises(ConfigError, match="no anchors for 'Van'"):
        Detect3dData(scenes=8, scene={"azimuths": 32}, classes=["Van"]).setup()
    wrong = Detect3dData(str(root), paste={"Boat": 3})
    wrong.setup()
    with pytest.raises(ConfigError, match=r"--data\.paste is .*Boat.*expected counts, 0 or more, of"):
        wrong.train_dataloader()


def test_bad_frames_stop_the_run_or_are_counted(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "own", 8)
    (root / "points" / "f02.bin").write_bytes(b"12345")
    (root / "train.txt").write_text("\n".join(f"f0{i}" for i in range(6)))
    (root / "val.txt").write_text("f06\nf07\n")
    data = Detect3dData(str(root), num_workers=0, batch_size=6)
    data.setup()
    with pytest.raises(DataError, match=r"f02\.bin: 5 bytes, expected a multiple of 16"):
        next(iter(data.train_dataloader()))
    skipping = Detect3dData(str(root), num_workers=0, batch_size=5, on_bad_sample="skip")
    skipping.setup()
    assert list(skipping.skipped) == ["f02"]
    assert sorted(next(iter(skipping.train_dataloader()))["index"].tolist()) == [0, 1, 3, 4, 5]
