"""LION beside golden results of its release, its published sizes, and what must hold for any operator."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from timm.layers import DropPath

from scanweave.core import ConfigError, create_grid_mixer, list_mixers
from scanweave.pointcloud.lion import LION, RELEASE_PI, LearnedPosition, LIONBlock, VoxelMerge
from scanweave.pointcloud.operators import OPERATORS, create_operator, list_operators
from scanweave.pointcloud.voxels import Voxels
from scanweave.pointcloud.windows import cut_groups, window_order

from .test_voxels import draw_voxels

GOLDEN = Path(__file__).parent / "golden" / "lion"
SMALL = {"dim": 8, "windows": ((3, 3, 4), (3, 3, 2)), "groups": (16, 8), "last_window": (3, 3, 1), "last_group": 8}


def load(name: str) -> tuple[dict, dict, Voxels]:
    """Return a golden case, its parameters under our names, and its voxels."""
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as file:
        case = {key: file[key] for key in file.files}
    weights = {
        key.removeprefix("param/").replace(".mamba.", ".mixing.mixer.").replace("conv.0.w", "conv.0.conv.w"): value
        for key, value in case.items()
        if key.startswith("param/")
    }
    coords = torch.from_numpy(case["coords"]).long()
    features = torch.from_numpy(case["features"]) if "features" in case else torch.zeros(len(coords), 1)
    shape = case["spatial_shape" if "spatial_shape" in case else "sparse_shape"]
    voxels = Voxels(features, coords, tuple(shape.tolist()), int(coords[:, 0].max()) + 1)
    return case, {key: torch.from_numpy(value) for key, value in weights.items()}, voxels


def small(operator: str = "mamba", **options) -> LION:
    torch.manual_seed(0)
    return LION(8, 4, operator=operator, **{**SMALL, **options})


@pytest.mark.parametrize("name", [f"window_{i}" for i in range(4)])
def test_windows_and_groups_equal_the_releases(name):
    case, _, voxels = load(name)
    window, shifted = case["window_shape_xyz"].tolist(), bool(case["shift"])
    for along in "xy":
        assert window_order(voxels, window, along, shifted).tolist() == case[along].tolist()
    groups = cut_groups(torch.bincount(voxels.coords[:, 0]), int(case["group_size"]))
    assert groups.take.tolist() == case["flat2win"].tolist()
    assert groups.put.tolist() == case["win2flat"].tolist()


@pytest.mark.parametrize("counts", [[0, 5, 3], [7, 0], [0, 0], [4, 8, 1]])
def test_groups_hold_every_voxel_and_no_other_entrys(counts):
    groups = cut_groups(torch.tensor(counts), 4)
    total = sum(counts)
    assert groups.take[groups.put].tolist() == list(range(total))
    assert len(groups.take) % 4 == 0
    entry = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    for group in groups.take.view(-1, 4):
        assert len(set(entry[group].tolist())) == 1


@pytest.mark.parametrize("name", ["merge_0", "merge_1"])
def test_merges_equal_the_releases(name):
    case, weights, voxels = load(name)
    merge = VoxelMerge(16, tuple(case["down_scale_xyz"].tolist()), float(case["diff_scale"]) * bool(case["diffusion"]))
    merge.load_state_dict(weights)
    with torch.no_grad():
        merged, inverse = merge(voxels)
    assert merged.shape == tuple(case["out_shape"].tolist())
    assert merged.coords.tolist() == case["out_coords"].tolist()
    assert abs(merged.features.numpy() - case["out_features"]).max() < 1e-4
    own = len(voxels)
    assert inverse[:own].tolist() == case["unq_inv"][:own].tolist()
    # The release lists new voxels by direction, we list them by parent.
    assert sorted(inverse[own:].tolist()) == sorted(case["unq_inv"][own:].tolist())


def test_a_block_of_mamba_equals_the_releases():
    case, weights, voxels = load("block_mamba")
    block = LIONBlock(16, tuple(case["window_shape_xyz"].tolist()), int(case["group_size"]), "mamba").eval()
    for layer in [*block.encoder, *block.decoder]:
        for operator in layer.blocks:
            operator.mixing.mixer = create_grid_mixer("bimamba", 16, d_state=4, average=False)
    block.load_state_dict(weights)
    with torch.no_grad():
        found = block(voxels)
    assert found.coords.tolist() == case["out_coords"].tolist()
    assert abs(found.features.numpy() - case["out_features"]).max() < 1e-4


@pytest.mark.parametrize(
    ("operator", "millions"),
    [("mamba", "2.756"), ("ttt", "2.820"), ("retnet", "3.337"), ("xlstm", "3.479"), ("rwkv", "4.331")],
)
def test_published_parameter_counts(operator, millions):
    backbone = LION(64, 32, operator=operator)
    assert f"{sum(p.numel() for p in backbone.parameters()) / 1e6:.3f}" == millions
    assert backbone.out_channels == 128


@pytest.mark.parametrize("operator", list_operators())
def test_any_operator_keeps_frames_apart_and_learns_with_all_it_has(operator):
    torch.manual_seed(0)
    one = {"windows": ((3, 3, 2),), "groups": (8,), "last_window": (3, 3, 1), "last_group": 8}
    backbone = LION(8, 2, operator=operator, dim=8, drop_path=0.0, **one).double().eval()
    both = draw_voxels((2, 9, 7), 8, share=0.5)
    y = backbone(both)
    assert y.shape == (1, 9, 7)
    assert y.features.shape[1] == 8
    for entry in (0, 1):
        rows = both.coords[:, 0] == entry
        coords = both.coords[rows].clone()
        coords[:, 0] = 0
        alone = backbone(Voxels(both.features[rows], coords, both.shape, 1))
        torch.testing.assert_close(alone.features, y.features[y.coords[:, 0] == entry])
    y.features.square().mul(torch.randn_like(y.features)).sum().backward()
    for name, parameter in backbone.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_frames_without_points():
    backbone = small(drop_path=0.0).eval()
    voxels = draw_voxels((4, 9, 7), 8, dtype=torch.float32)
    kept = voxels.coords[:, 0] == 1
    between = Voxels(voxels.features[kept], voxels.coords[kept], voxels.shape, 3)
    assert not backbone(between).to_bev()[[0, 2]].any()
    for training in (False, True):
        nothing = Voxels(torch.zeros(0, 8), torch.zeros(0, 4, dtype=torch.int64), (4, 9, 7), 2)
        assert not backbone.train(training)(nothing).to_bev().any()


def test_one_voxel_is_enough_to_train_on():
    backbone = small().train()
    y = backbone(Voxels(torch.ones(1, 8), torch.tensor([[0, 1, 2, 3]]), (4, 9, 7), 1))
    y.features.square().sum().backward()
    assert y.features.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in backbone.parameters())


@pytest.mark.parametrize("operator", OPERATORS)
def test_later_operators_are_skipped_more_often(operator):
    rates = [module.drop_prob for module in small(operator).modules() if isinstance(module, DropPath)]
    assert rates == sorted(rates)
    assert rates[0] == 0
    assert abs(rates[-1] - 0.2) < 1e-6


def test_recomputing_changes_memory_alone():
    voxels = draw_voxels((4, 9, 7), 8, dtype=torch.float32)
    found = []
    for recompute in (False, True):
        backbone = small(recompute=recompute)
        backbone.train()
        torch.manual_seed(1)
        backbone(voxels).features.square().sum().backward()
        found.append([p.grad for p in backbone.parameters()])
    for plain, again in zip(*found, strict=True):
        torch.testing.assert_close(plain, again)


def test_generated_voxels_stay_in_their_frame_and_in_the_grid():
    merge, voxels = VoxelMerge(3, (1, 1, 2), 0.5).double(), draw_voxels((4, 6, 5), 3, share=0.2)
    with torch.no_grad():
        merged, inverse = merge(voxels)
    counts = torch.bincount(voxels.coords[:, 0])
    assert len(inverse) == len(voxels) + 4 * int((counts // 2).sum())
    assert (merged.coords >= 0).all()
    assert (merged.coords < torch.tensor([2, 2, 6, 5])).all()
    own = voxels.coords.clone()
    own[:, 1] //= 2
    assert torch.equal(merged.coords[inverse[: len(voxels)]], own)


def test_positions_are_scaled_to_the_grid():
    voxels, position = draw_voxels((4, 6, 5)), LearnedPosition(2).double()
    seen = []
    position.position_embedding_head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    position(voxels)
    expected = (voxels.coords[:, [3, 2, 1]].double() / torch.tensor([5.0, 6.0, 4.0]) - 0.5) * 2 * RELEASE_PI
    torch.testing.assert_close(seen[0], expected)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LION(8, 6, **SMALL), "height is 6 voxels, expected a multiple of 4"),
        (lambda: LION(9, 4, **SMALL), "voxels have 9 features, expected dim = 8"),
        (lambda: LION(8, 4, **{**SMALL, "groups": (16,)}), "found 2 windows and 1 groups"),
        (lambda: create_operator("mamab", 8), r"no operator 'mamab' \(did you mean 'mamba'\?\)"),
        (lambda: create_operator("mamba", 8, d_state=4), "'mamba' takes no options, but was given d_state"),
        (lambda: create_operator("gla", 8, heads=4), "heads"),
    ],
)
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_the_list_holds_every_mixer():
    assert set(list_operators()) == {*OPERATORS, *list_mixers()}
