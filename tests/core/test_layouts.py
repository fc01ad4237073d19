"""Mixers of grids: every mixer of series serves as one; each layout's mixers keep their contract."""

from __future__ import annotations

import pytest
import torch

from scanweave.core import (
    CROSS_SCAN,
    ClipMixer,
    ConfigError,
    GraphMixer,
    GridMixer,
    Scanned,
    create_clip_mixer,
    create_graph_mixer,
    create_grid_mixer,
    create_mixer,
    create_order,
    list_mixers,
    register_mixer,
    registry,
)

GRID = (2, 3, 5, 8)


def draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("name", [*list_mixers(), *list_mixers("grid")])
def test_any_mixer_serves_a_grid_and_sees_all_of_it(name):
    torch.manual_seed(0)
    mixer, x = create_grid_mixer(name, 8).double(), draw(*GRID).requires_grad_()
    y = mixer(x)
    assert y.shape == x.shape
    (seen,) = torch.autograd.grad(y[0, 1, 2] @ draw(8), x, retain_graph=True)
    assert (seen[0].abs().sum(-1) > 0).all(), "a position does not see another"
    assert not seen[1].any()
    (y * draw(*GRID)).sum().backward()
    for parameter_name, parameter in mixer.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.abs().sum() > 0, parameter_name


@pytest.mark.parametrize("merge", ["mean", "sum"])
@pytest.mark.parametrize("shared", [False, True])
def test_scanned_is_each_order_there_and_back(merge, shared):
    torch.manual_seed(0)
    mixer, x = create_grid_mixer("mingru", 8, orders=CROSS_SCAN, merge=merge, shared=shared).double(), draw(*GRID)
    assert isinstance(mixer, Scanned)
    assert len(mixer.mixers) == (1 if shared else 4)
    expected = torch.zeros_like(x)
    for i, name in enumerate(CROSS_SCAN):
        order = create_order(name)
        expected += order.restore(mixer.mixers[0 if shared else i](order.permute(x))[0], GRID[1:3])
    torch.testing.assert_close(mixer(x), expected / 4 if merge == "mean" else expected)


def test_scanned_compiles_and_exports():
    torch.manual_seed(0)
    orders = ("hilbert", "snake-reversed", "morton", "windows-2", "columns")
    mixer, x = create_grid_mixer("mingru", 8, orders=orders).double(), draw(*GRID)
    expected = mixer(x)
    torch.testing.assert_close(torch.compile(mixer, backend="eager", fullgraph=True)(x), expected)
    torch.testing.assert_close(torch.export.export(mixer, (x,)).module()(x), expected)


def test_clips_are_grids_of_three_axes():
    mixer = create_grid_mixer("mingru", 4, orders=("raster", "temporal-first-reversed")).double()
    assert mixer(draw(2, 3, 2, 2, 4)).shape == (2, 3, 2, 2, 4)


def test_what_does_not_fit_is_named():
    mixer = create_grid_mixer("mingru", 8).double()
    with pytest.raises(ValueError, match=r"Scanned: x has shape \(2, 8\), expected \(batch, \*grid, 8\)"):
        mixer(draw(2, 8))
    with pytest.raises(ValueError, match=r"Scanned: x has 7 features on its last axis, expected dim = 8"):
        mixer(draw(2, 3, 3, 7))
    with pytest.raises(ValueError, match="axis of length 0"):
        mixer(draw(2, 0, 3, 8))
    with pytest.raises(TypeError, match=r"x is torch\.int64"):
        mixer(torch.zeros(GRID, dtype=torch.int64))
    with pytest.raises(ConfigError, match="no order 'rows'"):
        create_grid_mixer("mingru", 8, orders=("rows",))
    with pytest.raises(ConfigError, match="found 2 mixers and 3 orders"):
        Scanned([create_mixer("mingru", 8)] * 2, [create_order("raster")] * 3)
    with pytest.raises(ConfigError, match=r"dims are \[4, 8\]"):
        Scanned([create_mixer("mingru", 8), create_mixer("mingru", 4)], [create_order("raster")] * 2)
    with pytest.raises(ConfigError, match="merge is 'max'"):
        create_grid_mixer("mingru", 8, merge="max")


class Blur(GridMixer):
    """The mean of the grid."""

    def mix(self, x):
        return x.mean(tuple(range(1, x.dim() - 1)), keepdim=True).expand_as(x)


class Last(ClipMixer):
    """The sum of all frames so far."""

    def __init__(self, dim):
        super().__init__(dim, state_shapes={"sum": (dim,)})

    def mix(self, x, state, reset):
        y = x.cumsum(1) + state[0].unsqueeze(1)
        return y, (y[:, -1],)


class Count(GraphMixer):
    """The sum over the edges into a node."""

    def mix(self, x, edge_index):
        return torch.zeros_like(x).index_add(0, edge_index[1], x[edge_index[0]])


@pytest.fixture
def custom(monkeypatch):
    list_mixers()
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    for name, cls in (("blur", Blur), ("last", Last), ("count", Count)):
        register_mixer(name)(cls)


@pytest.mark.usefixtures("custom")
def test_a_layouts_mixers_are_found_by_name():
    for name, layout in (("blur", "grid"), ("last", "clip"), ("count", "graph")):
        assert name in list_mixers(layout)
    assert not {"blur", "last", "count"} & set(list_mixers())
    assert isinstance(create_grid_mixer("blur", 8), Blur)
    with pytest.raises(ConfigError, match=r"'blur' mixes a grid, asked for was one of a series.*create_grid"):
        create_mixer("blur", 8)
    with pytest.raises(ConfigError, match="'gru' mixes a series, asked for was one of a clip; build it by"):
        create_clip_mixer("gru", 8)
    with pytest.raises(TypeError, match="Linear is no Mixer"):
        register_mixer("linear")(torch.nn.Linear)


@pytest.mark.usefixtures("custom")
def test_a_clip_goes_on_from_its_state():
    mixer, x = create_clip_mixer("last", 4), draw(2, 5, 3, 2, 4)
    y, state = mixer(x)
    first, middle = mixer(x[:, :2])
    second, end = mixer(x[:, 2:], middle)
    torch.testing.assert_close(torch.cat([first, second], 1), y)
    torch.testing.assert_close(end, state)
    torch.testing.assert_close(mixer.step(x[:, 2], middle)[0], y[:, 2])
    with pytest.raises(ValueError, match=r"the state's shapes are \[\(2, 3, 2, 4\)\], expected \[\(2, 3, 3, 4\)\]"):
        mixer(draw(2, 5, 3, 3, 4), state)
    with pytest.raises(ValueError, match=r"expected torch\.bool"):
        mixer(x, None, torch.zeros(2, 4, dtype=torch.bool))


@pytest.mark.usefixtures("custom")
def test_a_graph_is_checked():
    mixer, edges = create_graph_mixer("count", 2), torch.tensor([[0, 1], [2, 2]])
    assert mixer(torch.ones(3, 2), edges)[2].tolist() == [2.0, 2.0]
    with pytest.raises(TypeError, match=r"edge_index is torch\.int32"):
        mixer(torch.ones(3, 2), edges.int())
    with pytest.raises(ValueError, match=r"edge_index has shape \(1, 2\)"):
        mixer(torch.ones(3, 2), edges[:1])
