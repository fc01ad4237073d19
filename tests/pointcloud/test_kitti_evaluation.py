"""KITTI's evaluation beside the numbers of its official C++ program, and its rules one by one."""

from __future__ import annotations

import functools
import gzip
import json
from pathlib import Path

import pytest
import torch

from scanweave.core.errors import ConfigError, DataError
from scanweave.pointcloud.kitti import KittiAP, Objects, evaluate, evaluate_folder, read_objects

GOLDEN = Path(__file__).parent / "golden" / "kitti_cases.json.gz"
CASES = ("case_01", "case_02", "case_03", "case_04")


@functools.cache
def golden(case: str) -> dict:
    with gzip.open(GOLDEN, "rt", encoding="utf-8") as file:
        return json.load(file)[case]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Return a function from a case's name to its folders of labels and detections."""

    @functools.cache
    def write(case: str) -> tuple[Path, Path]:
        root = tmp_path_factory.mktemp(case)
        for kind in ("label_2", "detections"):
            (root / kind).mkdir()
            for name, text in golden(case)[kind].items():
                (root / kind / name).write_text(text)
        return root / "label_2", root / "detections"

    return write


@pytest.mark.parametrize("overlaps", ["strict", "loose"])
@pytest.mark.parametrize("case", CASES)
def test_every_number_is_the_official_programs(case, overlaps, folders):
    found = evaluate_folder(*folders(case), overlaps)
    wanted = golden(case)[overlaps]
    assert found.keys() == wanted.keys()
    for name, metrics in wanted.items():
        for metric, averages in metrics.items():
            if averages is None:
                assert found[name][metric] is None, (name, metric)
                continue
            for recall, values in averages.items():
                assert found[name][metric][recall] == pytest.approx(values, abs=1e-6), (name, metric, recall)


def test_the_metric_is_the_function_with_nan_for_none_and_repeated_frames_once(folders):
    labels, detections = folders("case_03")
    metric = KittiAP("loose")
    for file in sorted(detections.glob("*.txt")):
        pair = [read_objects(labels / file.name)], [read_objects(file, scored=True)]
        metric.update([int(file.stem)], *pair)
    metric.update([int(file.stem)], *pair)
    values = metric.compute()
    wanted = golden("case_03")["loose"]
    assert values["Car/3d/R40/moderate"].item() == pytest.approx(wanted["Car"]["3d"]["R40"][1], abs=1e-5)
    assert values["Pedestrian/bev/R11/hard"].item() == pytest.approx(wanted["Pedestrian"]["bev"]["R11"][2], abs=1e-5)
    assert values["Car/aos/R40/easy"].isnan()
    assert values["Cyclist/2d/R40/easy"].isnan()
    with pytest.raises(ValueError, match="lengths 2, 1 and 1"):
        metric.update([0, 1], *pair)


def objects(*lines: str) -> Objects:
    words = [line.split() for line in lines]
    rows = [[float(word) for word in line[1:]] for line in words]
    return Objects(tuple(line[0] for line in words), torch.tensor(rows, dtype=torch.float64).reshape(-1, 15))


def car(name: str = "Car", top: float = 100, x: float = 0, score: float = 1.0, occluded: int = 0) -> str:
    return f"{name} 0 {occluded} 0 {100 + 50 * x} {top} {140 + 50 * x} 150 1.5 1.6 4 {10 * x} 1.5 20 0 {score}"


def many(count: int, **changes) -> list[str]:
    return [car(x=index, score=1 - index / 100, **changes) for index in range(count)]


def test_perfect_detections_reach_as_many_positions_as_there_are_objects():
    labels = objects(*many(14))
    found = evaluate([(labels, labels)])["Car"]
    assert found["3d"]["R40"] == [32.5] * 3
    assert evaluate([(labels, objects())])["Car"] == {"2d": None, "aos": None, "bev": None, "3d": None}


def test_a_label_of_exactly_the_least_height_is_not_counted_by_any_difficulty():
    labels = objects(*many(14), *[car(x=30 + index, top=125) for index in range(5)])
    assert labels.difficulty().tolist() == [0] * 14 + [-1] * 5
    found = evaluate([(labels, objects(*many(14)))])["Car"]
    assert found["2d"]["R40"] == [32.5] * 3


def test_neighbours_and_dont_care_cost_nothing_and_other_false_alarms_do():
    found = objects(*many(14), car(x=30, score=2.0))
    alone = evaluate([(objects(*many(14)), found)])["Car"]
    van = evaluate([(objects(*many(14), car("Van", x=30)), found)])["Car"]
    ignored = evaluate([(objects(*many(14), car("DontCare", x=30)), found)])["Car"]
    assert alone["2d"]["R40"][0] < 32.5
    assert van["2d"]["R40"][0] == van["3d"]["R40"][0] == 32.5
    assert ignored["2d"]["R40"][0] == 32.5
    assert ignored["3d"]["R40"][0] == alone["3d"]["R40"][0]


def test_words_and_folders_that_are_wrong_are_named(tmp_path, folders):
    labels, detections = folders("case_03")
    with pytest.raises(ConfigError, match="overlaps is 'hard', expected one of 'strict', 'loose'"):
        evaluate_folder(labels, detections, "hard")
    with pytest.raises(DataError, match="absent: not a folder"):
        evaluate_folder(labels, tmp_path / "absent")
    with pytest.raises(DataError, match=r"holds no \.txt file"):
        evaluate_folder(labels, tmp_path)
    (tmp_path / "999999.txt").write_text("")
    with pytest.raises(DataError, match=r"999999\.txt"):
        evaluate_folder(labels, tmp_path)
