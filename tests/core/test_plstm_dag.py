"""pLSTM over graphs: what a node sends goes to those it leads to, is bounded, and a line is a series."""

from __future__ import annotations

import pytest
import torch

from scanweave.core import ConfigError, create_graph_mixer
from scanweave.kernels import plstm_scan_dag

each = pytest.mark.parametrize("mode", ["P", "D"])
#: 0 -> 1 -> 3, 0 -> 2 -> 3, 2 -> 4; 5 apart.
EDGES = torch.tensor([[0, 0, 1, 2, 2], [1, 2, 3, 3, 4]])


def make(mode, dim=8):
    torch.manual_seed(0)
    return create_graph_mixer("plstm_dag", dim, mode=mode).double()


def draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@each
def test_a_node_sees_what_leads_to_it(mode):
    mixer, x = make(mode), draw(6, 8)
    seen = torch.autograd.functional.jacobian(mixer_of(mixer), x).abs().sum((1, 3)) > 1e-12
    # A node's shares are read from the nodes it leads to: a neighbour of a neighbour's source is seen, too.
    reach = torch.eye(6, dtype=torch.bool)
    for source, target in [(0, 1), (0, 2), (0, 3), (0, 4), (1, 3), (2, 3), (2, 4)]:
        reach[target, source] = True
    assert (seen | ~reach).all(), "a node does not see what leads to it"
    assert seen[5].tolist() == [False] * 5 + [True]
    assert seen[0].tolist() == [True] + [False] * 5


def mixer_of(mixer):
    return lambda x: mixer(x, EDGES)


@each
def test_gradient_reaches_every_parameter_and_half_precision_is_close(mode):
    mixer, x = make(mode), draw(6, 8)
    (mixer(x, EDGES) * draw(6, 8)).sum().backward()
    for name, parameter in mixer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    y = mixer(x, EDGES)
    assert (mixer.bfloat16()(x.bfloat16(), EDGES).double() - y).norm() / y.norm() < 0.03


@each
def test_edges_may_come_in_any_order(mode):
    mixer, x = make(mode), draw(6, 8)
    torch.testing.assert_close(mixer(x, EDGES[:, [3, 1, 4, 0, 2]]), mixer(x, EDGES))
    assert mixer(x, EDGES[:, :0]).shape == (6, 8)


@each
def test_what_a_node_sends_is_bounded_over_all_paths(mode, monkeypatch):
    """Through twenty layers of four nodes, each joined to all of the next, there are 4^19 paths."""
    layer = torch.cartesian_prod(torch.arange(4), torch.arange(4)).t()
    edges = torch.cat([layer + torch.tensor([[4 * i], [4 * i + 4]]) for i in range(19)], 1)
    caught = {}

    def catch(q, k, v, source, transition, mark, direct, edge_index):
        caught.update(source=source, transition=transition)
        return plstm_scan_dag(q, k, v, source, transition, mark, direct, edge_index)

    monkeypatch.setattr("scanweave.core.mixers.plstm_dag.plstm_scan_dag", catch)
    mixer = make(mode)
    torch.nn.init.constant_(mixer.gates.bias, 30.0)
    mixer(draw(80, 8), edges)
    one, marks = torch.ones(80, 1, 1, dtype=torch.float64), torch.ones(edges.shape[1], 1, dtype=torch.float64)
    first = (edges[0] == 0).unsqueeze(-1)
    _, states = plstm_scan_dag(
        one, one, one, caught["source"] * first, caught["transition"], marks, torch.zeros_like(one[..., 0]), edges
    )
    last = states[-16:].sum() if mode == "P" else states[-16:].max()
    assert 0.1 < last <= 1 + 1e-9


def test_an_unknown_mode_is_named():
    with pytest.raises(ConfigError, match="plstm_dag: mode is 'Q'"):
        create_graph_mixer("plstm_dag", 8, mode="Q")
