"""Figures are written whole, and without touching matplotlib's global state."""

from __future__ import annotations

import matplotlib
import numpy as np
import pytest
from matplotlib import pyplot

from scanweave.core.errors import DataError
from scanweave.core.plots import confusion_figure, forecast_figure, training_curve
from scanweave.core.run import RunFolder

TIMES = np.datetime64("2024-03-01T00") + np.arange(72) * np.timedelta64(1, "h")
VALUES = np.sin(np.arange(72) * 2 * np.pi / 24)


def size(path) -> tuple[int, int]:
    header = path.read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(header[16:20]), int.from_bytes(header[20:24])


@pytest.mark.parametrize("times", [TIMES, np.arange(72)], ids=["datetimes", "steps"])
def test_forecast_figure(tmp_path, times):
    past, future = slice(0, 48), slice(48, 72)
    path = forecast_figure(
        times[past], VALUES[past], times[future], VALUES[future], tmp_path / "f.png", truth=VALUES[future] + 0.1,
        interval=(VALUES[future] - 1, VALUES[future] + 1), name="load", unit="kW",
    )  # fmt: skip
    assert size(path) == (1350, 600)
    with pytest.raises(DataError, match=r"past: times have shape \(48,\) and values \(47,\)"):
        forecast_figure(times[past], VALUES[:47], times[future], VALUES[future], tmp_path / "g.png")
    assert not (tmp_path / "g.png").exists()


def test_confusion_figure(tmp_path):
    size(confusion_figure([[5, 1, 0], [0, 3, 0], [0, 0, 0]], ["a", "b", "never seen"], tmp_path / "c.png"))
    with pytest.raises(DataError, match=r"2 class names need \(2, 2\)"):
        confusion_figure([[1]], ["a", "b"], tmp_path / "d.png")


def test_training_curve(tmp_path):
    curves = {"train/loss": {0: 1.0, 1: 0.5}, "val/loss": {0: float("nan"), 1: 0.6}}
    assert size(training_curve(curves, tmp_path / "t.png")) == (1200, 600)
    with pytest.raises(DataError, match="no values"):
        training_curve({"train/loss": {}}, tmp_path / "u.png")


def test_drawing_leaves_matplotlibs_global_state_alone(tmp_path):
    before = dict(matplotlib.rcParams), matplotlib.get_backend()
    training_curve({"a": {0: 1.0}}, tmp_path / "x.png")
    assert (dict(matplotlib.rcParams), matplotlib.get_backend()) == before
    assert pyplot.get_fignums() == []


def test_history_joins_the_starts_of_a_run(tmp_path):
    for version, rows in enumerate(["0,4,1.0\n1,9,0.8\n", "1,9,0.7\n2,14,0.6\n"]):
        folder = tmp_path / "logs" / f"version_{version}"
        folder.mkdir(parents=True)
        (folder / "metrics.csv").write_text("epoch,step,train/loss\n" + rows)
    assert RunFolder(tmp_path).history() == {"train/loss": {0: 1.0, 1: 0.7, 2: 0.6}}
    assert RunFolder(tmp_path).write_metrics({"a": 1}).read_text() == '{\n  "a": 1.0\n}\n'
    assert RunFolder(tmp_path).write_metrics({"b": 2}).read_text() == '{\n  "a": 1.0,\n  "b": 2.0\n}\n'
