"""The pLSTM mixers against the paper's formulas, node by node, and against one another where one contains another."""

from __future__ import annotations

import pytest
import torch

from scanweave.core import create_graph_mixer, create_grid_mixer
from scanweave.core.mixers.plstm2d import DIRECTIONS
from tests.core.papers import draw, make, stir

each = pytest.mark.parametrize("mode", ["P", "D"])


def shares(gates, x):
    """Return each gate of x (..., dim) by name, (..., heads)."""
    return dict(
        zip(gates.names, torch.sigmoid(x @ gates.weight.T + gates.bias).chunk(len(gates.names), -1), strict=True)
    )


def joined(mixer, o):
    """Return ``W_o norm(o)`` of o (..., heads, size)."""
    return mixer.o_proj(mixer.norm(o).flatten(-2))


def projected(mixer, x):
    """Return q over the root of its size, and ``k v^T`` of each node and head."""
    q, k, v = (p(x).unflatten(-1, (mixer.heads, -1)) for p in (mixer.q_proj, mixer.k_proj, mixer.v_proj))
    return q / q.shape[-1] ** 0.5, k.unsqueeze(-1) * v.unsqueeze(-2)


def read(C, q):
    return torch.einsum("hkv,hk->hv", C, q)


def scale(gate):
    return gate[..., None, None]


def series_formula(mixer, x):
    """``o_t = (M_t C_{t-1} + D_t k_t v_t^T)^T q_t``, ``C_t = T_t C_{t-1} + S_t k_t v_t^T``."""
    q, kv = projected(mixer, x)
    g, C, outputs = shares(mixer.gates, x), torch.zeros_like(kv[0]), []
    for t in range(len(x)):
        outputs.append(read(scale(g["mark"][t]) * C + scale(g["direct"][t]) * kv[t], q[t]))
        C = scale(g["transition"][t]) * C + scale(g["source"][t]) * kv[t]
    return joined(mixer, torch.stack(outputs))


def grid_formula(mixer, x):
    """Every node's edges to the right and down, from those from the left and above, from each of four corners."""
    (rows, columns), (q, kv) = x.shape[:2], projected(mixer, x)
    total = scale(shares(mixer.direct, x)["direct"]) * kv
    total = torch.einsum("ijhkv,ijhk->ijhv", total, q)
    for (sideways, vertical), gates in zip(DIRECTIONS, mixer.gates, strict=True):
        g, none = shares(gates, x), torch.zeros_like(kv[0, 0])
        right, down = {}, {}
        for i in range(rows) if vertical == "down" else reversed(range(rows)):
            for j in range(columns) if sideways == "right" else reversed(range(columns)):
                at = {name: scale(gate[i, j]) for name, gate in g.items()}
                left = right.get((i, j - 1 if sideways == "right" else j + 1), none)
                above = down.get((i - 1 if vertical == "down" else i + 1, j), none)
                total[i, j] += read(at["mark_left"] * left + at["mark_above"] * above, q[i, j])
                if mixer.mode == "P":
                    flow = at["decay"] * (left + above) + at["source"] * kv[i, j]
                    right[i, j], down[i, j] = at["share"] * flow, (1 - at["share"]) * flow
                else:
                    right[i, j] = at["right"] * left + at["source_right"] * kv[i, j]
                    down[i, j] = at["turn"] * left + at["down"] * above + at["source_down"] * kv[i, j]
    return joined(mixer, total)


def test_plstm1d_is_its_formula():
    mixer, x = stir(make("plstm1d", 12, head_dim=4)), draw(9, 12)
    torch.testing.assert_close(mixer(x[None])[0][0], series_formula(mixer, x))


def make_grid(mode):
    torch.manual_seed(0)
    return stir(create_grid_mixer("plstm2d", 12, mode=mode, head_dim=4).double().requires_grad_(False))


@each
def test_plstm2d_is_its_formula(mode):
    mixer, x = make_grid(mode), draw(3, 4, 12)
    torch.testing.assert_close(mixer(x[None])[0], grid_formula(mixer, x))


def test_plstm2d_on_a_strip_read_from_one_side_is_plstm1d():
    strip, line, x = make_grid("D"), stir(make("plstm1d", 12, head_dim=4)), draw(2, 9, 12)
    for ours, theirs in [(p, getattr(line, n)) for n, p in strip.named_children() if n not in ("gates", "direct")]:
        theirs.load_state_dict(ours.state_dict())
    names = {"transition": "right", "source": "source_right", "mark": "mark_left"}
    gates = strip.gates[0]
    for parameter in ("weight", "bias"):
        part = dict(zip(gates.names, getattr(gates, parameter).chunk(len(gates.names)), strict=True))
        part["direct"] = getattr(strip.direct, parameter)
        setattr(line.gates, parameter, torch.nn.Parameter(torch.cat([part[names.get(n, n)] for n in line.gates.names])))
    for other in strip.gates[1:]:
        other.bias.view(len(other.names), -1)[[other.names.index("mark_left"), other.names.index("mark_above")]] = -1e4
    torch.testing.assert_close(strip(x[:, None])[:, 0], line(x)[0])


@each
def test_plstm2d_compiles_to_one_graph(mode):
    mixer, x = make_grid(mode).float(), draw(1, 3, 4, 12).float()
    torch.testing.assert_close(torch.compile(mixer, backend="eager", fullgraph=True)(x), mixer(x))


def graph_formula(mixer, x, edges):
    """Nodes are numbered so that edges go up; each sends on its share of what came in and of its own."""
    q, kv = projected(mixer, x)
    g, (tail, head) = shares(mixer.gates, x), mixer.ends(x).chunk(2, -1)
    edges, states, outputs = edges.t().tolist(), {}, []
    for n in range(len(x)):
        into, out = [e for e in edges if e[1] == n], [e for e in edges if e[0] == n]
        came = sum((states[tuple(e)] for e in into), torch.zeros_like(kv[0]))
        outputs.append(read(scale(g["mark"][n]) * came + scale(g["direct"][n]) * kv[n], q[n]))
        scores = {tuple(e): tail[n] + head[e[1]] for e in out}
        for e, score in scores.items():
            if mixer.mode == "P":
                w = score.exp() / sum(s.exp() for s in scores.values())
                states[e] = scale(w) * (scale(g["decay"][n]) * came + scale(g["source"][n]) * kv[n])
            else:
                w = torch.sigmoid(score)
                states[e] = scale(g["decay"][n]) * came / max(len(into), 1) + scale(g["source"][n] * w) * kv[n]
    return joined(mixer, torch.stack(outputs))


@each
def test_plstm_dag_is_its_formula_on_a_grid(mode):
    torch.manual_seed(0)
    mixer = stir(create_graph_mixer("plstm_dag", 12, mode=mode, head_dim=4).double().requires_grad_(False))
    nodes, x = torch.arange(12).view(3, 4), draw(12, 12)
    right = torch.stack([nodes[:, :-1].flatten(), nodes[:, 1:].flatten()])
    down = torch.stack([nodes[:-1].flatten(), nodes[1:].flatten()])
    edges = torch.cat([right, down], 1)
    torch.testing.assert_close(mixer(x, edges), graph_formula(mixer, x, edges))
