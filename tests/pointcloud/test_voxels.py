"""Points in voxels, and sparse convolutions beside dense ones."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from scanweave.core import ConfigError
from scanweave.pointcloud.sparse import SparseConv3d, SubMConv3d
from scanweave.pointcloud.voxels import (
    MeanVoxels,
    VoxelEncoder,
    VoxelGrid,
    Voxels,
    flat_index,
    scatter_max,
    scatter_mean,
    unflatten_index,
)

GRID = VoxelGrid((0.0, -2.0, -1.0, 4.0, 2.0, 1.0), (0.5, 0.5, 0.5))


def draw_points(count: int, seed: int = 0, batch: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    place = torch.rand(count, 3, generator=generator) * torch.tensor([5.0, 5.0, 3.0]) - torch.tensor([0.5, 2.5, 1.5])
    entry = torch.randint(0, batch, (count, 1), generator=generator).float()
    return torch.cat([entry, place, torch.rand(count, 1, generator=generator)], 1)


def draw_voxels(shape=(4, 6, 5), features=3, batch=2, share=0.3, seed=0, dtype=torch.float64) -> Voxels:
    generator = torch.Generator().manual_seed(seed)
    coords = (torch.rand(batch, *shape, generator=generator) < share).nonzero()
    return Voxels(torch.randn(len(coords), features, generator=generator, dtype=dtype), coords, shape, batch)


def dense(voxels: Voxels) -> torch.Tensor:
    """Return (B, C, Z, Y, X)."""
    made = voxels.features.new_zeros(voxels.batch_size, *voxels.shape, voxels.features.shape[1])
    made[tuple(voxels.coords.T)] = voxels.features
    return made.movedim(-1, 1)


def test_points_go_where_a_loop_over_them_puts_them():
    points = draw_points(300)
    kept, coords, voxel = GRID.assign(points, 2)
    found = {}
    for row in points.tolist():
        b, x, y, z, _ = row
        if 0 <= x < 4 and -2 <= y < 2 and -1 <= z < 1:
            found.setdefault((int(b), int((z + 1) // 0.5), int((y + 2) // 0.5), int(x // 0.5)), []).append(row)
    assert sorted(found) == [tuple(c) for c in coords.tolist()], "voxels come sorted"
    for i, place in enumerate(sorted(found)):
        assert kept[voxel == i].tolist() == found[place]


def test_the_greatest_coordinate_lies_outside():
    points = torch.tensor([[0.0, 4.0, 0.0, 0.0, 1.0], [0.0, 0.0, -2.0, -1.0, 1.0]])
    kept, coords, _ = GRID.assign(points, 1)
    assert kept.tolist() == points[1:].tolist()
    assert coords.tolist() == [[0, 0, 0, 0]]


def test_of_too_many_voxels_those_with_most_points_stay_and_it_is_said():
    grid = VoxelGrid(GRID.point_range, GRID.voxel_size, max_voxels=20)
    points = draw_points(300)
    with pytest.warns(UserWarning, match="more than max_voxels = 20"):
        kept, coords, voxel = grid.assign(points, 2)
    assert torch.bincount(coords[:, 0]).tolist() == [20, 20]
    _, all_coords, all_voxel = GRID.assign(points, 2)
    for entry in (0, 1):
        counts = torch.bincount(all_voxel)[all_coords[:, 0] == entry].sort(descending=True).values[:20]
        own = torch.bincount(voxel)[coords[:, 0] == entry].sort(descending=True).values
        assert own.tolist() == counts.tolist()
    with pytest.warns(UserWarning, match="max_voxels"):
        again = grid.assign(points, 2)
    assert torch.equal(again[0], kept)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"voxel_size": (0.3, 0.5, 0.5)}, "along x the range 0.0 to 4.0 holds 13.333 voxels of 0.3 m"),
        ({"point_range": (0.0, 2.0, -1.0, 4.0, -2.0, 1.0)}, "along y the range is 2.0 to -2.0"),
        ({"voxel_size": (0.5, 0.5, 0.0)}, "along z .* the size 0.0"),
    ],
)
def test_a_grid_that_does_not_fit_is_refused(change, message):
    settings = {"point_range": GRID.point_range, "voxel_size": GRID.voxel_size, **change}
    with pytest.raises(ConfigError, match=message):
        VoxelGrid(**settings)


def test_flat_index_and_back():
    coords = draw_voxels().coords
    assert torch.equal(unflatten_index(flat_index(coords, (4, 6, 5)), (4, 6, 5)), coords)


def test_scatters_are_loops():
    values, index = torch.randn(20, 3, dtype=torch.float64) - 5, torch.arange(20) % 3 * 2
    mean, most = scatter_mean(values, index, 6), scatter_max(values, index, 6)
    for row in range(6):
        own = values[index == row]
        expected = (own.mean(0), own.max(0).values) if len(own) else (torch.zeros(3), torch.zeros(3))
        torch.testing.assert_close(mean[row], expected[0].double())
        torch.testing.assert_close(most[row], expected[1].double())


def test_the_encoder_is_what_its_docstring_says():
    torch.manual_seed(0)
    encoder, points = VoxelEncoder(GRID, widths=(8, 6)).eval(), draw_points(100)
    voxels = encoder(points, 2)
    kept, coords, voxel = GRID.assign(points, 2)
    for i in range(len(coords)):
        own = kept[voxel == i]
        center = torch.tensor([0.0, -2.0, -1.0]) + (coords[i, 1:].flip(0) + 0.5) * 0.5
        x = torch.cat([own[:, 1:], own[:, 1:4] - own[:, 1:4].mean(0), own[:, 1:4] - center], 1)
        x = encoder.layers[0](x)
        x = encoder.layers[1](torch.cat([x, x.max(0).values.expand_as(x)], 1)).max(0).values
        torch.testing.assert_close(voxels.features[i], x)
    torch.testing.assert_close(MeanVoxels(GRID)(points, 2).features, scatter_mean(kept[:, 1:], voxel, len(coords)))


def test_the_published_encoder_has_4_6_thousand_parameters():
    encoder = VoxelEncoder(VoxelGrid((0, -40, -3, 70.4, 40, 1), (0.2, 0.2, 0.125)))
    assert f"{sum(p.numel() for p in encoder.parameters()) / 1e3:.1f}" == "4.6"
    assert encoder.grid.shape == (32, 400, 352)


@pytest.mark.parametrize("training", [True, False])
def test_no_points_and_one_point(training):
    encoder = VoxelEncoder(GRID).train(training)
    assert encoder(torch.zeros(0, 5), 2).features.shape == (0, 64)
    one = encoder(torch.tensor([[1.0, 1.0, 1.0, 0.0, 0.5]]), 2)
    assert one.coords.tolist() == [[1, 2, 6, 2]]
    assert one.features.isfinite().all()


def test_points_with_another_number_of_values_are_refused():
    with pytest.raises(ValueError, match=r"shape \(3, 4\), expected \(points, 1 \+ 4\)"):
        VoxelEncoder(GRID)(torch.zeros(3, 4), 1)


def test_the_map_seen_from_above_has_heights_in_its_channels():
    voxels = draw_voxels()
    assert torch.equal(voxels.to_bev(), dense(voxels).flatten(1, 2))


def test_a_submanifold_convolution_is_a_dense_one_at_the_voxels():
    voxels = draw_voxels()
    voxels.features.requires_grad_()
    layer = SubMConv3d(3, 4).double()
    y = layer(voxels)
    weight = layer.conv.weight.permute(0, 4, 1, 2, 3)  # (out, kz, ky, kx, in)
    expected = F.conv3d(dense(voxels), weight, padding=1).movedim(1, -1)[tuple(voxels.coords.T)]
    torch.testing.assert_close(y.features, expected)
    torch.testing.assert_close(layer(voxels).features, expected, msg="with the neighbours that are known by now")
    inputs = (voxels.features, layer.conv.weight)
    do = torch.randn_like(expected)
    for ours, theirs in zip(
        torch.autograd.grad(y.features, inputs, do), torch.autograd.grad(expected, inputs, do), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_a_strided_convolution_is_a_dense_one():
    voxels, layer = draw_voxels(), SparseConv3d(3, 4, 3, stride=2, padding=(0, 1, 1)).double()
    y = layer(voxels)
    expected = F.conv3d(dense(voxels), layer.conv.weight.permute(0, 4, 1, 2, 3), stride=2, padding=(0, 1, 1))
    assert y.shape == tuple(expected.shape[2:])
    torch.testing.assert_close(dense(y), expected)


def test_convolutions_of_nothing_and_of_half_precision():
    nothing = Voxels(torch.zeros(0, 3), torch.zeros(0, 4, dtype=torch.int64), (4, 6, 5), 2)
    assert SubMConv3d(3, 4)(nothing).features.shape == (0, 4)
    strided = SparseConv3d(3, 4, 3, stride=2, padding=(0, 1, 1))
    assert strided(nothing).shape == strided(draw_voxels(dtype=torch.float32)).shape
    half = draw_voxels(dtype=torch.bfloat16)
    layer = SubMConv3d(3, 4)
    y = layer(half).features
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(
        y.float(), layer(half.with_features(half.features.float())).features, rtol=0.01, atol=0.01
    )
