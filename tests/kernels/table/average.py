"""The rows of the ops whose state is an average."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from scanweave.kernels import prefix_attention, wkv4

from ..contract import Case, Tensors, normal, packed

CHANNELS = 5
HEADS, WIDTH = 2, 3  # of prefix_attention
WIDE = 35  # whole vectors of every instruction set, and one that is cut


def _draw(generator: torch.Generator, batch: int, length: int, channels: int = CHANNELS) -> Tensors:
    def positive(*shape: int) -> Tensor:
        return 0.5 + torch.rand(*shape, generator=generator, dtype=torch.float64)

    state = normal(generator, batch, channels), positive(batch, channels), normal(generator, batch, channels)
    return {
        "k": normal(generator, batch, length, channels),
        "v": normal(generator, batch, length, channels),
        "w": positive(channels) - 0.45,
        "u": normal(generator, channels),
        "initial_state": torch.cat(state, 1),
    }


def _extreme(generator: torch.Generator, batch: int, length: int, channels: int = CHANNELS) -> Tensors:
    """Return large keys of either sign, decays from almost none to all at once, and a state that holds nothing."""
    drawn = _draw(generator, batch, length, channels)
    keys = torch.tensor([-100.0, -30.0, 0.0, 30.0, 100.0], dtype=torch.float64)
    rates = torch.tensor([1e-6, 1e-3, 0.7, 50.0], dtype=torch.float64)
    state = drawn["initial_state"].unflatten(1, (3, channels)).clone()
    state[0, :2], state[0, 2] = 0, -1e30
    return {
        **drawn,
        "k": keys[torch.randint(len(keys), drawn["k"].shape, generator=generator)],
        "w": rates[torch.randint(len(rates), (channels,), generator=generator)],
        "u": 30 * drawn["u"],
        "initial_state": state.flatten(1),
    }


def _rate(value: float) -> Callable[[Tensors], dict[str, Any]]:
    def change(t: Tensors) -> dict[str, Any]:
        spoilt = t["w"].clone()
        spoilt[1] = value
        return {"w": spoilt}

    return change


_NARROW = Case(
    name="wkv4",
    op="wkv4",
    call=packed(wkv4, ((CHANNELS,),) * 3),
    inputs=_draw,
    sequences=frozenset({"k", "v"}),
    extreme=_extreme,
    mistakes=(
        ("k's axes", lambda t: {"k": t["k"][0]}, ValueError, r"wkv4: k has shape .*, expected \(B, L, C\)"),
        ("k's dtype", lambda t: {"k": t["k"].int()}, TypeError, "wkv4: k has dtype int32"),
        ("no step", lambda t: {n: t[n][:, :0] for n in ("k", "v")}, ValueError, "length 0"),
        ("v's length", lambda t: {"v": t["v"][:, 1:]}, ValueError, "v has shape"),
        ("v's dtype", lambda t: {"v": t["v"].double()}, TypeError, "v has dtype float64, expected one of float32"),
        ("v no tensor", lambda t: {"v": None}, TypeError, "v is a NoneType, expected a tensor"),
        ("w's shape", lambda t: {"w": t["w"][:1]}, ValueError, r"w has shape \(1,\), expected \(C,\) = \(5,\)"),
        ("w's dtype", lambda t: {"w": t["w"].half()}, TypeError, "w has dtype float16"),
        ("u's shape", lambda t: {"u": t["u"][None]}, ValueError, "u has shape"),
        ("u's device", lambda t: {"u": t["u"].to("meta")}, ValueError, "u is on meta, expected cpu"),
        ("reset's shape", lambda t: {"reset": torch.zeros(2, 3, dtype=torch.bool)}, ValueError, "reset has shape"),
        ("reset's dtype", lambda t: {"reset": torch.zeros(2, 8)}, TypeError, "reset has dtype float32"),
        ("negative", _rate(-0.5), ValueError, r"wkv4: w is -0.5 at \(1,\) \(1 such of 5\)"),
        ("NaN", _rate(torch.nan), ValueError, r"w is nan at \(1,\)"),
        ("infinite", _rate(torch.inf), ValueError, r"w is inf at \(1,\)"),
    ),
    interpreted=65,
)

_WIDE = replace(
    _NARROW,
    name="wkv4-wide",
    call=packed(wkv4, ((WIDE,),) * 3),
    inputs=partial(_draw, channels=WIDE),
    extreme=partial(_extreme, channels=WIDE),
    mistakes=(),
    dtypes=(torch.float32,),
    interpreted=0,
)


def _draw_prefix(generator: torch.Generator, batch: int, length: int) -> Tensors:
    weights = 0.5 + torch.rand(batch, HEADS, generator=generator, dtype=torch.float64)
    state = normal(generator, batch, HEADS * WIDTH), weights, normal(generator, batch, HEADS)
    return {
        "scores": normal(generator, batch, length, HEADS),
        "v": normal(generator, batch, length, HEADS, WIDTH),
        "initial_state": torch.cat(state, 1),
    }


def _extreme_prefix(generator: torch.Generator, batch: int, length: int) -> Tensors:
    """Return large scores of either sign."""
    drawn = _draw_prefix(generator, batch, length)
    scores = torch.tensor([-1e4, -100.0, 0.0, 100.0, 1e4], dtype=torch.float64)
    return {**drawn, "scores": scores[torch.randint(len(scores), drawn["scores"].shape, generator=generator)]}


_PREFIX = Case(
    name="prefix_attention",
    op="wkv4",
    call=packed(prefix_attention, ((HEADS, WIDTH), (HEADS,), (HEADS,))),
    inputs=_draw_prefix,
    sequences=frozenset({"scores", "v"}),
    extreme=_extreme_prefix,
    mistakes=(
        ("v's axes", lambda t: {"v": t["v"][0]}, ValueError, r"prefix_attention: v has shape .*\(B, L, H, V\)"),
        ("v's dtype", lambda t: {"v": t["v"].int()}, TypeError, "v has dtype int32"),
        ("no step", lambda t: {n: t[n][:, :0] for n in ("scores", "v")}, ValueError, "length 0"),
        ("scores' shape", lambda t: {"scores": t["scores"][..., :1]}, ValueError, r"scores has shape .*\(B, L, H\)"),
        ("scores' dtype", lambda t: {"scores": t["scores"].double()}, TypeError, "scores has dtype float64"),
        ("reset's shape", lambda t: {"reset": torch.zeros(2, 3, dtype=torch.bool)}, ValueError, "reset has shape"),
    ),
    # The same kernels as wkv4's, which the interpreter runs.
    interpreted=0,
    composed=True,
)

CASES = (_NARROW, _WIDE, _PREFIX)
