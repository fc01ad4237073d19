"""plstm_scan_2d: each form against the definition, and the definition against the paths of the line graph."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from scanweave.kernels import GridState, dispatch, plstm_scan_2d

from .contract import BACKWARD_BOUND, FORWARD_BOUND, assert_close, cotangents, normal

NAMES = ("q", "k", "v", "source", "transition", "mark", "direct")
FORMS = [
    name
    for name, reason in dispatch.served_by("cpu")["plstm_scan_2d"][1].items()
    if reason is None and name != "reference"
]
DIRECTIONS = tuple(product(("right", "left"), ("down", "up")))
INTERPRETED = not torch.cuda.is_available()  # a node takes milliseconds then
served = pytest.mark.parametrize("backend", FORMS)
# In float64 too, and over more nodes than Triton's interpreter gets through.
exact = pytest.mark.parametrize("backend", [name for name in FORMS if name != "triton"])


def draw(
    rows: int, columns: int, heads: int = 2, keys: int = 3, values: int = 5, dtype=torch.float64
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(rows + 100 * columns)
    grid, matrix = (2, rows, columns, heads), (heads, keys, values)
    drawn = {
        "q": normal(generator, *grid, keys),
        "k": normal(generator, *grid, keys),
        "v": normal(generator, *grid, values),
        "source": normal(generator, *grid, 2),
        "transition": torch.rand(*grid, 2, 2, generator=generator, dtype=torch.float64) - 0.4,
        "mark": normal(generator, *grid, 2),
        "direct": normal(generator, *grid),
        "rows": normal(generator, 2, rows, *matrix),
        "columns": normal(generator, 2, columns, *matrix),
    }
    wide = dtype if dtype in (torch.float32, torch.float64) else torch.float32
    return {name: t.to(wide if name in ("rows", "columns") else dtype) for name, t in drawn.items()}


def run(tensors: dict[str, Tensor], **options) -> tuple[Tensor, Tensor]:
    """Return o, and all states that leave as one tensor."""
    state = GridState(tensors["rows"], tensors["columns"]) if "rows" in tensors else None
    o, final = plstm_scan_2d(*(tensors[name] for name in NAMES), initial_state=state, **options)
    return o, torch.cat([part.flatten(1) for part in final], 1)


def gradients(tensors: dict[str, Tensor], **options) -> dict[str, Tensor]:
    leaves = {name: t.detach().clone().requires_grad_() for name, t in tensors.items()}
    o, final = run(leaves, **options)
    found = torch.autograd.grad((o, final), list(leaves.values()), cotangents(o, final))
    return {"o": o.detach(), "final": final.detach(), **dict(zip(leaves, found, strict=True))}


def assert_all_close(found: dict[str, Tensor], wanted: dict[str, Tensor], dtype: torch.dtype) -> None:
    for name, value in wanted.items():
        bound = (FORWARD_BOUND if name in ("o", "final") else BACKWARD_BOUND)[dtype]
        assert_close(found[name], value, bound, name)


@served
@pytest.mark.parametrize("size", [(1, 1), (1, 5), (9, 2), (16, 16), (17, 35), (33, 2)])
def test_matches_the_definition(backend: str, size: tuple[int, int]) -> None:
    if backend == "triton" and INTERPRETED and size[0] * size[1] > 20:
        pytest.skip("minutes in Triton's interpreter")
    drawn = draw(*size, dtype=torch.float32)
    wanted = gradients({name: t.double() for name, t in drawn.items()}, backend="reference")
    assert_all_close(gradients(drawn, backend=backend), wanted, torch.float32)


@served
@pytest.mark.parametrize("directions", DIRECTIONS)
def test_walks_the_grid_in_all_four_ways(backend: str, directions: tuple[str, str]) -> None:
    dtype, size = (torch.float32, (3, 2)) if backend == "triton" else (torch.float64, (5, 18))
    drawn = draw(*size, dtype=dtype)
    wanted = gradients({name: t.double() for name, t in drawn.items()}, backend="reference", directions=directions)
    assert_all_close(gradients(drawn, backend=backend, directions=directions), wanted, dtype)
    axes = [axis for axis, turned in ((1, directions[1] == "up"), (2, directions[0] == "left")) if turned]
    flipped = {name: t.flip(axes) for name, t in drawn.items() if name in NAMES}
    alone = {name: drawn[name] for name in NAMES}
    assert_close(
        run(alone, backend=backend, directions=directions)[0], run(flipped)[0].flip(axes), FORWARD_BOUND[dtype], "o"
    )


@exact
def test_parts_of_a_grid_equal_the_whole(backend: str) -> None:
    drawn = draw(11, 19)
    whole, last = run(drawn, backend=backend)
    for axis, side, other in ((1, "rows", "columns"), (2, "columns", "rows")):
        cut = drawn["q"].shape[axis] // 2
        first, second = (
            {
                name: t.narrow(axis if name in NAMES else 1, start, size) if name != other else t
                for name, t in drawn.items()
            }
            for start, size in ((0, cut), (cut, drawn["q"].shape[axis] - cut))
        )
        names = NAMES
        o, state = plstm_scan_2d(
            *(first[n] for n in names), initial_state=(first["rows"], first["columns"]), backend=backend
        )
        second[other] = getattr(state, other)
        rest, end = plstm_scan_2d(
            *(second[n] for n in names), initial_state=(second["rows"], second["columns"]), backend=backend
        )
        assert_close(torch.cat([o, rest], axis), whole, 1e-12, "o")
        sides = [getattr(state, side), getattr(end, side)]
        joined = {side: torch.cat(sides, 1), other: getattr(end, other)}
        assert_close(torch.cat([joined[n].flatten(1) for n in ("rows", "columns")], 1), last, 1e-12, "states")


def test_sums_over_the_paths_of_the_line_graph() -> None:
    """Node by node over edges as a graph, so that the definition's own indices are not trusted."""
    rows, columns = 3, 4
    drawn = {name: t[:1, ..., :1, :] if name in ("q", "k", "v") else t for name, t in draw(rows, columns, 1).items()}
    q, k, v, source, transition, mark, direct = (drawn[name][0] for name in NAMES)
    states: dict[tuple[tuple[int, int], tuple[int, int]], Tensor] = {}
    wanted = torch.zeros(rows, columns, v.shape[-1], dtype=torch.float64)
    for x, y in product(range(rows), range(columns)):
        node, write = (x, y), torch.outer(k[x, y, 0], v[x, y, 0])
        before, after = ((x, y - 1), (x - 1, y)), ((x, y + 1), (x + 1, y))
        read = direct[x, y, 0] * write
        for i, other in enumerate(before):
            if (other, node) in states:
                read = read + mark[x, y, 0, i] * states[other, node]
        wanted[x, y] = read.T @ q[x, y, 0]
        for o, other in enumerate(after):
            passed = source[x, y, 0, o] * write
            for i, origin in enumerate(before):
                if (origin, node) in states:
                    passed = passed + transition[x, y, 0, o, i] * states[origin, node]
            states[node, other] = passed
    tensors = [x.unsqueeze(0) for x in (q, k, v, source, transition, mark, direct)]
    o, _ = plstm_scan_2d(*tensors, scale=1.0, backend="reference")
    assert_close(o[0, :, :, 0], wanted, 1e-12, "o")


def test_mass_is_kept_where_nodes_turn_it() -> None:
    """P-mode: what a node takes it sends on, a share to each side; nothing is lost before the grid's end."""
    share = torch.rand(1, 6, 7, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    out = torch.stack([share, 1 - share], -1)
    source = torch.zeros_like(out)
    source[:, 0, 0] = out[:, 0, 0]
    one = torch.ones(1, 6, 7, 1, 1, dtype=torch.float64)
    _, state = plstm_scan_2d(one, one, one, source, out.unsqueeze(-1).expand(-1, -1, -1, -1, 2, 2), 0 * out, 0 * share)
    assert_close(state.rows.sum() + state.columns.sum(), torch.tensor(1.0), 1e-12, "what leaves")


def test_refuses_unknown_directions_and_backends() -> None:
    drawn = draw(2, 2)
    with pytest.raises(ValueError, match=r"directions is .*, expected right or left, then down or up"):
        run(drawn, directions=("down", "right"))
    with pytest.raises(TypeError, match="initial_state is a Tensor"):
        plstm_scan_2d(*(drawn[name] for name in NAMES), initial_state=drawn["rows"])
