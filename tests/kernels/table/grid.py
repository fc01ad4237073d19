"""The row of the op that runs over a grid: two rows of nodes, whose columns are the steps of a sequence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from scanweave.kernels import GridState, plstm_scan_2d

from ..contract import Case, Tensors, normal

ROWS, HEADS, KEYS, VALUES = 2, 1, 1, 2
NODES = ("q", "k", "v", "source", "transition", "mark", "direct")


def _over_columns(
    *, initial_state: Tensor | None = None, reset: Tensor | None = None, backend: str | None = None, **nodes: Tensor
) -> tuple[Tensor, Tensor]:
    """Run the grid; its state is what crosses a column, and where a sequence starts nothing passes along the rows."""
    grid = {name: x.movedim(1, 2) for name, x in nodes.items()}
    if reset is not None:
        starts = reset[:, None, :, None, None]
        row = torch.tensor([True, False], device=reset.device)
        grid["mark"] = grid["mark"].masked_fill(starts & row, 0)
        grid["transition"] = grid["transition"].masked_fill(starts.unsqueeze(-1) & row, 0)
    state = None
    if initial_state is not None:
        columns = grid["q"].shape[2]
        nothing = initial_state.new_zeros((len(initial_state), columns, *initial_state.shape[2:]))
        state = GridState(initial_state, nothing)
    o, final = plstm_scan_2d(*(grid[name] for name in NODES), initial_state=state, backend=backend)
    return o.movedim(2, 1), final.rows


def _draw(generator: torch.Generator, batch: int, length: int) -> Tensors:
    grid = (batch, length, ROWS, HEADS)
    return {
        "q": normal(generator, *grid, KEYS),
        "k": normal(generator, *grid, KEYS),
        "v": normal(generator, *grid, VALUES),
        "source": normal(generator, *grid, 2),
        "transition": torch.rand(*grid, 2, 2, generator=generator, dtype=torch.float64) - 0.5,
        "mark": normal(generator, *grid, 2),
        "direct": normal(generator, *grid),
        "initial_state": normal(generator, batch, ROWS, HEADS, KEYS, VALUES),
    }


def _extreme(generator: torch.Generator, batch: int, length: int) -> Tensors:
    """Return gates that are shut or open, states that turn at every node and states that go straight on for ever."""
    drawn = _draw(generator, batch, length)
    ways = torch.tensor([[[1, 0], [0, 1]], [[0, 0], [1, 1]], [[1, 1], [0, 0]], [[0, 0], [0, 0]]], dtype=torch.float64)
    drawn["transition"] = ways[torch.randint(len(ways), drawn["direct"].shape, generator=generator)]
    for name in ("source", "mark"):
        drawn[name] = drawn[name].sign().clamp(min=0)
    return drawn


def _zeros(name: str, *shape: int, **options: Any) -> Callable[[Tensors], dict[str, Any]]:
    return lambda _: {name: torch.zeros(*shape, **options)}


CASES = (
    Case(
        name="plstm_scan_2d",
        op="plstm_scan_2d",
        call=_over_columns,
        inputs=_draw,
        sequences=frozenset(NODES),
        extreme=_extreme,
        mistakes=(
            ("q's axes", lambda t: {"q": t["q"][..., 0]}, ValueError, r"q has shape .*, expected \(B, X, Y, H, K\)"),
            ("no node", lambda t: {n: t[n][:, :0] for n in NODES}, ValueError, "X, Y and K at least 1"),
            ("k's width", _zeros("k", 2, 8, ROWS, HEADS, KEYS + 1), ValueError, "k has shape"),
            ("k's dtype", lambda t: {"k": t["k"].double()}, TypeError, "k has dtype float64"),
            ("v's axes", lambda t: {"v": t["v"][..., 0]}, ValueError, "v has shape"),
            ("source's shape", lambda t: {"source": t["mark"][..., :1]}, ValueError, r"source has .*\(B, X, Y, H, 2\)"),
            ("transition", lambda t: {"transition": t["mark"]}, ValueError, r"transition has .*\(B, X, Y, H, 2, 2\)"),
            ("direct's dtype", lambda t: {"direct": t["direct"].half()}, TypeError, "direct has dtype float16"),
            ("mark's device", lambda t: {"mark": t["mark"].to("meta")}, ValueError, "mark is on meta"),
            (
                "state",
                _zeros("initial_state", 2, 3, HEADS, KEYS, VALUES),
                ValueError,
                r"initial_state.rows has .*\(B, X, H, K, V\)",
            ),
        ),
        interpreted=0,
        restarts=False,
        composed=True,
    ),
)
