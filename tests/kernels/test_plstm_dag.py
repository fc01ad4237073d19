"""pLSTM over graphs: the levels give what the loop over nodes gives, on any graph and under any numbering."""

from __future__ import annotations

import pytest
import torch

from scanweave.kernels import BackendError, line_graph, plstm_scan_2d, plstm_scan_dag

from .contract import BACKWARD_BOUND, FORWARD_BOUND, Tensors, assert_close

HEADS, KEYS, VALUES = 2, 3, 4
NODES, EDGES = ("q", "k", "v", "direct"), ("source", "mark")


def draw_edges(nodes: int, share: float, seed: int = 0) -> torch.Tensor:
    """Return a random graph's edges: from lower to higher numbers of a random numbering, in random order."""
    generator = torch.Generator().manual_seed(seed)
    names = torch.randperm(nodes, generator=generator)
    upper = torch.rand(nodes, nodes, generator=generator).triu(1)
    found = names[(upper > 1 - share).nonzero().t()]
    return found[:, torch.randperm(found.shape[1], generator=generator)]


def draw(edges: torch.Tensor, nodes: int, dtype: torch.dtype = torch.float64, seed: int = 1) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "q": (nodes, HEADS, KEYS),
        "k": (nodes, HEADS, KEYS),
        "v": (nodes, HEADS, VALUES),
        "source": (edges.shape[1], HEADS),
        "transition": (line_graph(edges).shape[1], HEADS),
        "mark": (edges.shape[1], HEADS),
        "direct": (nodes, HEADS),
    }
    drawn = {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
    drawn["transition"] = 0.4 * drawn["transition"]
    return {name: x.to(dtype) for name, x in drawn.items()}


def gradients(t: Tensors, edges: torch.Tensor, backend: str) -> tuple[torch.Tensor, torch.Tensor, Tensors]:
    leaves = {name: x.clone().requires_grad_() for name, x in t.items()}
    o, states = plstm_scan_dag(**leaves, edge_index=edges, backend=backend)
    generator = torch.Generator().manual_seed(5)
    into = [torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.dtype) for x in (o, states)]
    found = torch.autograd.grad((o, states), list(leaves.values()), into, materialize_grads=True)
    return o.detach(), states.detach(), dict(zip(leaves, found, strict=True))


GRAPHS = [(1, 0.0), (5, 0.0), (2, 1.0), (9, 0.3), (12, 1.0), (40, 0.1)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("nodes", "share"), GRAPHS)
def test_levels_match_the_loop(nodes: int, share: float, dtype: torch.dtype) -> None:
    edges = draw_edges(nodes, share)
    t = draw(edges, nodes, dtype)
    o, states, found = gradients(t, edges, "chunked")
    assert (o.dtype, states.dtype) == (dtype, torch.promote_types(dtype, torch.float32))
    wanted = gradients({name: x.double() for name, x in t.items()}, edges, "reference")
    assert_close(o, wanted[0], FORWARD_BOUND[dtype], "o")
    assert_close(states, wanted[1], FORWARD_BOUND[dtype], "states")
    for name, gradient in wanted[2].items():
        assert_close(found[name], gradient, BACKWARD_BOUND[dtype], name)


@pytest.mark.parametrize("backend", ["chunked", "reference"])
def test_gradients_of_both_orders(backend: str) -> None:
    edges = draw_edges(5, 0.7)
    t = {name: x.requires_grad_() for name, x in draw(edges, 5).items()}

    def call(*tensors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return plstm_scan_dag(*tensors, edges, backend=backend)

    assert torch.autograd.gradcheck(call, tuple(t.values()), fast_mode=True)
    assert torch.autograd.gradgradcheck(call, tuple(t.values()), fast_mode=True)


def test_opcheck_and_one_graph() -> None:
    edges = draw_edges(6, 0.5)
    t = draw(edges, 6, torch.float32)
    leaves = tuple(x.requires_grad_() for x in t.values())
    torch.library.opcheck(torch.ops.scanweave.plstm_scan_dag.default, (*leaves, edges, 0.5, "chunked"))
    compiled = torch.compile(plstm_scan_dag, backend="aot_eager", fullgraph=True)
    assert_close(compiled(*leaves, edges)[0].detach(), plstm_scan_dag(*leaves, edges)[0].detach(), 1e-5, "o")


def grid_edges(rows: int, columns: int) -> torch.Tensor:
    """Return the edges of a grid: those to the right row by row, then those down."""
    node = torch.arange(rows * columns).view(rows, columns)
    right = torch.stack([node[:, :-1].flatten(), node[:, 1:].flatten()])
    down = torch.stack([node[:-1].flatten(), node[1:].flatten()])
    return torch.cat([right, down], 1)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 6), (5, 1), (3, 4), (6, 5)])
def test_a_grid_is_a_graph(rows: int, columns: int) -> None:
    generator = torch.Generator().manual_seed(2)

    def normal(*inner: int) -> torch.Tensor:
        return torch.randn(rows, columns, HEADS, *inner, generator=generator, dtype=torch.float64, requires_grad=True)

    q, k, v, source, mark = normal(KEYS), normal(KEYS), normal(VALUES), normal(2), normal(2)
    transition, direct = normal(2, 2), normal()
    leaves = [q, k, v, source, transition, mark, direct]
    wanted, _ = plstm_scan_2d(*(x.unsqueeze(0) for x in leaves))
    edges = grid_edges(rows, columns)
    way = torch.arange(edges.shape[1]) >= rows * (columns - 1)
    way = way.long()
    into, out = line_graph(edges)
    nodes, start, end = (x.flatten(0, 1) for x in (q, k, v)), edges[0], edges[1]
    o, _ = plstm_scan_dag(
        *nodes,
        source.flatten(0, 1)[start, :, way],
        transition.flatten(0, 1)[start[out], :, way[out], way[into]],
        mark.flatten(0, 1)[end, :, way],
        direct.flatten(0, 1),
        edges,
    )
    assert_close(o.view_as(wanted).detach(), wanted.detach(), 1e-12, "o")
    weight = torch.randn(o.shape, generator=generator, dtype=torch.float64)
    found = torch.autograd.grad((o * weight).sum(), leaves)
    expected = torch.autograd.grad((wanted * weight.view_as(wanted)).sum(), leaves)
    for a, b in zip(found, expected, strict=True):
        assert_close(a, b, 1e-11, "gradient")


def test_a_batch_of_graphs_is_its_graphs() -> None:
    parts = [draw_edges(7, 0.4, seed=1), draw_edges(4, 0.9, seed=2)]
    tensors = [draw(edges, nodes) for edges, nodes in zip(parts, (7, 4), strict=True)]
    joined = {name: torch.cat([t[name] for t in tensors]) for name in tensors[0]}
    o, states = plstm_scan_dag(**joined, edge_index=torch.cat([parts[0], parts[1] + 7], 1))
    separate = [plstm_scan_dag(**t, edge_index=edges) for t, edges in zip(tensors, parts, strict=True)]
    torch.testing.assert_close(o, torch.cat([a for a, _ in separate]))
    torch.testing.assert_close(states, torch.cat([b for _, b in separate]))


def test_numbers_of_nodes_and_edges_mean_nothing() -> None:
    edges, nodes = draw_edges(10, 0.4), 10
    t, generator = draw(edges, nodes), torch.Generator().manual_seed(3)
    o, states = plstm_scan_dag(**t, edge_index=edges)
    name = torch.randperm(nodes, generator=generator)
    order = torch.randperm(edges.shape[1], generator=generator)
    other = name[edges][:, order]
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order))
    pairs = {pair: i for i, pair in enumerate(map(tuple, place[line_graph(edges)].t().tolist()))}
    chosen = [pairs[pair] for pair in map(tuple, line_graph(other).t().tolist())]
    renamed = {key: torch.empty_like(t[key]).index_copy(0, name, t[key]) for key in NODES}
    renamed |= {key: t[key][order] for key in EDGES} | {"transition": t["transition"][chosen]}
    o_other, states_other = plstm_scan_dag(**renamed, edge_index=other)
    torch.testing.assert_close(o_other[name], o)
    torch.testing.assert_close(states_other, states[order])


def test_what_does_not_fit_is_named() -> None:
    edges = torch.tensor([[0, 1, 2], [1, 2, 3]])
    t = draw(edges, 4)

    def refused(error: type[Exception], message: str, **changed: object) -> None:
        with pytest.raises(error, match=message):
            plstm_scan_dag(**{**t, "edge_index": edges, **changed})

    refused(ValueError, r"a cycle, which edge 0 \(0 to 1\)", edge_index=torch.tensor([[0, 1, 2], [1, 2, 0]]),
            transition=torch.ones(3, HEADS, dtype=torch.float64))  # fmt: skip
    refused(ValueError, r"edge 2 is \[2, 4\], expected nodes from 0 to 3", edge_index=edges + (edges == 3))
    refused(ValueError, "transition has 1 pairs on axis 0, expected 2", transition=t["transition"][:1])
    refused(ValueError, r"source has shape \(2, 2\).*\(E, H\)", source=t["source"][:2])
    refused(ValueError, r"edge_index has shape \(3, 2\), expected \(2, E\)", edge_index=edges.t())
    refused(TypeError, "edge_index has dtype int32, expected int64", edge_index=edges.int())
    refused(TypeError, "k has dtype float32", k=t["k"].float())
    refused(ValueError, r"q has shape \(4, 6\), expected \(N, H, K\)", q=t["q"].flatten(1))
    refused(BackendError, "no such form", backend="cpu")
    refused(ValueError, "a cycle", edge_index=torch.tensor([[0, 1, 2], [1, 2, 2]]),
            transition=torch.ones(3, HEADS, dtype=torch.float64))  # fmt: skip
