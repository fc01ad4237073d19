"""The row of the op whose state is a window: the last inputs."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch

from scanweave.kernels import causal_conv1d

from ..contract import Case, Tensors, normal

CHANNELS, TAPS = 5, 4
WIDE = 35  # whole vectors of every instruction set, and one that is cut


def _draw(generator: torch.Generator, batch: int, length: int, channels: int = CHANNELS, taps: int = TAPS) -> Tensors:
    return {
        "x": normal(generator, batch, length, channels),
        "weight": normal(generator, channels, taps),
        "bias": normal(generator, channels),
        "initial_state": normal(generator, batch, taps - 1, channels),
    }


def _extreme(generator: torch.Generator, batch: int, length: int) -> Tensors:
    """Return inputs that saturate the activation on both sides, and taps of 0."""
    drawn = _draw(generator, batch, length)
    size = torch.tensor([-1e4, -40.0, 0.0, 40.0, 1e4], dtype=torch.float64)
    chosen = size[torch.randint(len(size), drawn["x"].shape, generator=generator)]
    return {**drawn, "x": chosen, "weight": drawn["weight"] * (drawn["weight"] > 0)}


_CONV = Case(
    name="causal_conv1d",
    op="causal_conv1d",
    call=causal_conv1d,
    inputs=_draw,
    sequences=frozenset({"x"}),
    extreme=_extreme,
    variants=({}, {"activation": "silu"}),
    mistakes=(
        ("x's axes", lambda t: {"x": t["x"][0]}, ValueError, r"causal_conv1d: x has shape .*, expected \(B, L, C\)"),
        ("x's dtype", lambda t: {"x": t["x"].int()}, TypeError, "causal_conv1d: x has dtype int32"),
        ("no step", lambda t: {"x": t["x"][:, :0]}, ValueError, "length 0"),
        ("weight's shape", lambda t: {"weight": t["weight"][1:]}, ValueError, r"weight has shape \(4, 4\), .*C = 5"),
        ("no tap", lambda t: {"weight": t["weight"][:, :0]}, ValueError, "W >= 1"),
        ("weight's dtype", lambda t: {"weight": t["weight"].half()}, TypeError, "weight has dtype float16"),
        ("bias' shape", lambda t: {"bias": t["bias"][:2]}, ValueError, r"bias has shape \(2,\), expected \(C,\)"),
        ("bias' device", lambda t: {"bias": t["bias"].to("meta")}, ValueError, "bias is on meta, expected cpu"),
        ("state's shape", lambda t: {"initial_state": t["initial_state"][:, 1:]}, ValueError, r"\(B, W - 1, C\)"),
        ("reset's shape", lambda t: {"reset": torch.zeros(2, 3, dtype=torch.bool)}, ValueError, "reset has shape"),
        ("activation", lambda t: {"activation": "relu"}, ValueError, "activation is 'relu', expected 'none' or 'silu'"),
    ),
    interpreted=0,
    composed=True,
)

_WIDE = replace(
    _CONV,
    name="causal_conv1d-wide",
    inputs=partial(_draw, channels=WIDE, taps=3),
    extreme=partial(_draw, channels=WIDE, taps=3),
    mistakes=(),
    dtypes=(torch.float32,),
)

CASES = (_CONV, _WIDE)
