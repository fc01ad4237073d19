"""The rows of the op that runs recurrent cells."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from scanweave.kernels import cell_scan
from scanweave.kernels.cell_scan.cells import find_cell

from ..contract import Case, Tensors, normal, packed

HEADS = 2


def _draw(generator: torch.Generator, batch: int, length: int, cell: str, size: int) -> Tensors:
    gates, states = len(find_cell(cell).gates), find_cell(cell).states
    parts = dict(zip(states, normal(generator, len(states), batch, HEADS, size), strict=True))
    if "n" in parts:
        parts["n"] = 0.5 + parts["n"].abs()
    return {
        "wx": normal(generator, batch, length, HEADS, gates, size),
        "R": normal(generator, HEADS, gates, size, size) / (2 * size**0.5),
        "bias": 0.5 * normal(generator, HEADS, gates, size),
        "initial_state": torch.cat([part.flatten(1) for part in parts.values()], 1),
    }


def _extreme(generator: torch.Generator, batch: int, length: int, cell: str, size: int) -> Tensors:
    """Return gates that are open, shut or between, and a batch entry whose state is fresh."""
    drawn = _draw(generator, batch, length, cell, size)
    levels = torch.tensor([-100.0, -30.0, 0.0, 1.0, 30.0, 100.0], dtype=torch.float64)
    state = drawn["initial_state"].clone()
    state[0] = 0
    wx = levels[torch.randint(len(levels), drawn["wx"].shape, generator=generator)]
    if cell.startswith("slstm"):
        # An exponential forget gate above 1 would let the exponent grow without bound.
        wx[:, :, :, 1] = wx[:, :, :, 1].clamp(max=1.0)
    return {**drawn, "wx": wx, "initial_state": state}


def _row(cell: str, size: int) -> Case:
    states = len(find_cell(cell).states)
    return Case(
        name=f"cell_scan-{cell}",
        op="cell_scan",
        call=packed(partial(cell_scan, cell=cell), ((HEADS, size),) * states),
        inputs=partial(_draw, cell=cell, size=size),
        sequences=frozenset({"wx"}),
        extreme=partial(_extreme, cell=cell, size=size),
        # In float64 the contract's differences would take too long: tests beside it draw less.
        dtypes=(torch.float32, torch.bfloat16, torch.float16),
        interpreted=0,
    )


def _zeros(*shape: int) -> Tensor:
    return torch.zeros(*shape)


_MISTAKES = (
    ("wx's axes", lambda t: {"wx": t["wx"][0]}, ValueError, r"wx has shape .*, expected \(B, L, H, 4, D\)"),
    ("wx's gates", lambda t: {"wx": t["wx"][:, :, :, :3]}, ValueError, "the lstm cell's gates i, f, g, o on axis 3"),
    ("wx's dtype", lambda t: {"wx": t["wx"].int()}, TypeError, "cell_scan: wx has dtype int32"),
    ("no step", lambda t: {"wx": t["wx"][:, :0]}, ValueError, "length 0"),
    ("R's shape", lambda t: {"R": t["R"][:, :3]}, ValueError, r"R has shape .*, expected \(H, G, D, D\)"),
    ("R's dtype", lambda t: {"R": t["R"].half()}, TypeError, "R has dtype float16"),
    ("R no tensor", lambda t: {"R": None}, TypeError, "R is a NoneType, expected a tensor"),
    ("bias's shape", lambda t: {"bias": t["bias"][0]}, ValueError, r"bias has shape .*, expected \(H, G, D\)"),
    ("bias's device", lambda t: {"bias": t["bias"].to("meta")}, ValueError, "bias is on meta, expected cpu"),
    ("reset's shape", lambda t: {"reset": _zeros(2, 3).bool()}, ValueError, "reset has shape"),
    ("reset's dtype", lambda t: {"reset": _zeros(2, 8)}, TypeError, "reset has dtype float32"),
    (
        "cell",
        lambda t: {"cell": "lsmt"},
        ValueError,
        "no cell 'lsmt'; did you mean 'lstm'.; there are elman, lstm, gru",
    ),
)

CASES = (
    # The plainest cell stands for all in Triton's interpreter; the others' gradients have tests of their own.
    replace(_row("elman", 3), interpreted=17),
    replace(_row("lstm", 8), mistakes=_MISTAKES),
    _row("gru", 8),
    replace(_row("slstm", 5), variants=({}, {"cell": "slstm_exp"})),
)
