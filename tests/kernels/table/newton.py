"""The rows of the op whose cells have diagonal recurrent weights."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from scanweave.kernels import newton_scan
from scanweave.kernels.newton_scan.cells import find_cell

from ..contract import Case, Tensors, normal, packed


def _draw(generator: torch.Generator, batch: int, length: int, cell: str, channels: int) -> Tensors:
    found = find_cell(cell)
    gates = len(found.gates)
    return {
        "wx": normal(generator, batch, length, gates, channels),
        "r": normal(generator, len(found.weights), channels) / 2,
        "bias": 0.5 * normal(generator, gates, channels),
        "initial_state": normal(generator, batch, len(found.states) * channels),
    }


def _extreme(generator: torch.Generator, batch: int, length: int, cell: str, channels: int) -> Tensors:
    """Return gates that are open, shut or between, and a batch entry whose state is fresh."""
    drawn = _draw(generator, batch, length, cell, channels)
    levels = torch.tensor([-100.0, -30.0, 0.0, 1.0, 30.0, 100.0], dtype=torch.float64)
    drawn["initial_state"][0] = 0
    return {**drawn, "wx": levels[torch.randint(len(levels), drawn["wx"].shape, generator=generator)]}


def _row(cell: str, channels: int, mistakes: tuple = ()) -> Case:
    return Case(
        name=f"newton_scan-{cell}",
        op="newton_scan",
        call=packed(partial(newton_scan, cell=cell), ((channels,),) * len(find_cell(cell).states)),
        inputs=partial(_draw, cell=cell, channels=channels),
        sequences=frozenset({"wx"}),
        extreme=partial(_extreme, cell=cell, channels=channels),
        mistakes=mistakes,
        interpreted=17,
    )


def _zeros(*shape: int) -> Tensor:
    return torch.zeros(*shape)


_MISTAKES = (
    ("wx's gates", lambda t: {"wx": t["wx"][:, :, :2]}, ValueError, "the gru cell's gates z, q, n on axis 2"),
    ("wx's dtype", lambda t: {"wx": t["wx"].int()}, TypeError, "newton_scan: wx has dtype int32"),
    ("no step", lambda t: {"wx": t["wx"][:, :0]}, ValueError, "length 0"),
    ("r's shape", lambda t: {"r": t["r"][:2]}, ValueError, r"r has shape \(2, 3\), expected \(weights z, q, n; C\)"),
    ("bias's shape", lambda t: {"bias": t["bias"][0]}, ValueError, r"bias has shape .*, expected \(G, C\)"),
    ("reset's shape", lambda t: {"reset": _zeros(2, 3).bool()}, ValueError, "reset has shape"),
    ("tol", lambda t: {"tol": 0.0}, ValueError, "tol is 0.0 and max_iterations 100, expected both above 0"),
    ("cell", lambda t: {"cell": "grru"}, ValueError, "no cell 'grru'; did you mean 'gru'.; there are gru, lstm"),
)

CASES = (_row("gru", 3, _MISTAKES), _row("lstm", 2))
