"""Whole detectors: published sizes, learning one frame by heart, empty frames, and names."""

from __future__ import annotations

import math

import pytest
import torch

from scanweave.core import ConfigError
from scanweave.pointcloud import AnchorClass, Detector, box_iou, corners, create_detector, list_detectors
from scanweave.pointcloud.operators import OPERATORS
from scanweave.pointcloud.second import SECOND
from scanweave.pointcloud.voxels import Voxels

RANGE = (0.0, -6.4, -3.0, 12.8, 6.4, 1.0)
TINY = {
    "pointpillars_kitti_small": {"pillar_size": (0.4, 0.4), "dim": 16},
    "second_kitti_small": {"sparse_widths": (4, 8, 8, 8), "sparse_out": 8},
    "lion_kitti_small": {"dim": 16, "windows": ((13, 13, 16),), "groups": (64,), "last_group": 32, "drop_path": 0.0},
}
COMMON = {"point_range": RANGE, "depths": (1, 1), "widths": (16, 32), "up_widths": (16, 16)}


def tiny(name: str, **overrides):
    torch.manual_seed(0)
    return create_detector(name, **{**COMMON, **TINY[name], **overrides})


def frame() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return points on the sides of a car and a pedestrian on flat ground, their boxes and labels."""
    made = torch.Generator().manual_seed(0)
    boxes = torch.tensor([[6.0, -2.0, -0.9, 3.7, 1.6, 1.5, 0.5], [9.0, 3.0, 0.2, 0.8, 0.6, 1.8, 0.0]])
    eight = corners(boxes)
    share = torch.rand(2, 300, 8, generator=made).pow(4)
    shell = (share / share.sum(-1, keepdim=True)) @ eight
    ground = torch.rand(1500, 3, generator=made) * torch.tensor([12.8, 12.8, 0.02]) + torch.tensor([0, -6.4, -1.7])
    points = torch.cat((shell.flatten(0, 1), ground))
    return torch.cat((points, torch.full((len(points), 1), 0.3)), 1), boxes, torch.tensor([0, 1])


def train(detector: Detector, steps: int) -> tuple[float, float]:
    """Return the loss of the first and of the last step on the frame."""
    (points, boxes, labels), losses = frame(), []
    optimizer = torch.optim.Adam(detector.parameters(), lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        found = detector.loss([points], [boxes], [labels])
        found["loss"].backward()
        optimizer.step()
        losses.append(float(found["loss"].detach()))
    return losses[0], losses[-1]


@pytest.mark.parametrize("name", ["second_kitti_small", "lion_kitti_small"])
def test_a_few_steps_lower_the_loss(name):
    first, last = train(tiny(name), 12)
    assert last < 0.6 * first


def test_a_frame_is_learned_by_heart():
    detector, (points, boxes, _) = tiny("pointpillars_kitti_small"), frame()
    before = detector.eval().detect([points])[0]
    first, last = train(detector.train(), 45)
    assert last < first / 10
    assert not len(before)
    # Running statistics follow slowly; the frame's own are what was trained with.
    for layer in detector.modules():
        if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm):
            layer.momentum = 1.0
    with torch.no_grad():
        detector([points])
    (seen,) = detector.eval().detect([points])
    assert seen.labels[:2].sort().values.tolist() == [0, 1]
    order = seen.labels[:2].argsort()
    assert (box_iou(seen.boxes[:2][order], boxes).diagonal() > 0.5).all()
    assert (seen.scores[:2] > 0.3).all()
    turn = seen.boxes[:2][order][0, 6] - boxes[0, 6]
    assert abs(math.remainder(float(turn), 2 * math.pi)) < 0.3


@pytest.mark.parametrize("name", TINY)
def test_frames_do_not_see_each_other_and_may_be_empty(name):
    detector, (points, boxes, labels) = tiny(name).eval(), frame()
    nothing, other = points[:0], points * torch.tensor([1.0, -1.0, 1.0, 1.0])
    both = detector([nothing, points, other])
    alone = detector([points])
    torch.testing.assert_close(both.scores[1:2], alone.scores, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(both.residuals[1:2], alone.residuals, rtol=1e-4, atol=1e-5)
    beyond = torch.cat((points, points + torch.tensor([500.0, 0, 0, 0]), points.new_full((3, 4), math.nan)))
    shuffled = beyond[torch.randperm(len(beyond), generator=torch.Generator().manual_seed(1))]
    torch.testing.assert_close(detector([shuffled]).scores, alone.scores, rtol=1e-3, atol=1e-4)
    assert [len(found) for found in detector.detect([nothing, nothing])] == [0, 0]
    found = detector.train().loss([nothing, nothing], [boxes[:0]] * 2, [labels[:0]] * 2)
    found["loss"].backward()
    assert torch.isfinite(found["loss"])


@pytest.mark.parametrize(
    ("name", "parts", "anchors"),
    [
        ("lion_mamba_kitti", (4_608, 2_755_840, 4_429_312, 36_936), 844_800),
        ("pointpillars_kitti", (768, 0, 4_806_400, 27_720), 321_408),
        ("second_kitti", (0, 711_872, 4_576_768, 36_936), 211_200),
    ],
)
def test_published_detectors_have_their_parts_sizes(name, parts, anchors):
    detector = create_detector(name)
    found = [detector.reader, detector.middle, detector.bev, detector.head]
    assert tuple(sum(p.numel() for p in part.parameters()) if part else 0 for part in found) == parts
    assert detector.classes == ("Car", "Pedestrian", "Cyclist")
    assert len(detector.head.anchors) == anchors


def test_second_sees_the_published_heights():
    middle = SECOND(4, 40)
    assert middle.out_channels == 256
    made = torch.Generator().manual_seed(0)
    coords = torch.randint(0, 16, (30, 4), generator=made) * torch.tensor([0, 2, 1, 1])
    voxels = Voxels(torch.randn(30, 4, generator=made), coords.unique(dim=0), (40, 16, 16), 1)
    voxels = voxels.with_features(voxels.features[: len(voxels.coords)])
    assert middle(voxels).to_bev().shape == (1, 256, 2, 2)
    nothing = Voxels(torch.zeros(0, 4), coords[:0], (40, 16, 16), 2)
    assert middle(nothing).to_bev().shape == (2, 256, 2, 2)
    with pytest.raises(ConfigError, match="12 voxels high"):
        SECOND(4, 12)
    with pytest.raises(ConfigError, match="found 3 widths, expected 4"):
        SECOND(4, 40, (8, 8, 8))


def test_names():
    assert {f"lion_{name}_kitti{size}" for name in OPERATORS for size in ("", "_small")} < {*list_detectors()}
    tram = AnchorClass("Tram", (15.0, 2.5, 3.5), -1.7, 0.5, 0.35)
    detector = tiny("lion_kitti_small", mixer="mingru", classes=["Cyclist", tram])
    assert detector.classes == ("Cyclist", "Tram")
    assert any("mingru" in type(module).__name__.lower() for module in detector.modules())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: create_detector("pointpilars_kitti"), r"no detector 'pointpilars_kitti' \(did you mean 'pointpill"),
        (lambda: create_detector("second_kitti", ["Cars"]), r"class 'Cars' \(did you mean 'Car'\?\)"),
        (lambda: tiny("pointpillars_kitti_small", width=3), r"no argument 'width' \(did you mean"),
        (
            lambda: tiny("pointpillars_kitti_small", point_range=(0, -6, -3, 12, 6, 1)),
            "30 voxels along y, expected a mul",
        ),
        (lambda: tiny("lion_kitti_small", mixer="mamab"), "no operator 'mamab'"),
    ],
)
def test_unknown_names_and_sizes_that_do_not_fit_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_frames_that_are_no_tables_are_refused():
    detector, (points, _, _) = tiny("pointpillars_kitti_small"), frame()
    with pytest.raises(ValueError, match="points has no frame"):
        detector([])
    with pytest.raises(ValueError, match="frame 1: points have shape"):
        detector([points, points[0]])
    with pytest.raises(ValueError, match=r"expected \(points, 1 \+ 4\)"):
        detector([points[:, :3]])
