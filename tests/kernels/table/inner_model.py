"""The rows of the op whose state is a model trained on the sequence."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from scanweave.kernels import ttt_linear

from ..contract import Case, Tensors, normal, packed

H, D = 2, 5
SHAPES = ((H, D, D), (H, D), (H, D, D), (H, D), (1,))
SMALL = 3  # the width of one head whose gradients' gradients are compared with differences
SMALL_SHAPES = ((1, SMALL, SMALL), (1, SMALL), (1, SMALL, SMALL), (1, SMALL), (1,))


def _call(*, initial_state: tuple[Tensor, ...] | None = None, **arguments: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Call the op with the position among the numbers of the state."""
    if initial_state is not None:
        place = initial_state[4].detach().round().long() % arguments.get("mini_batch", 16)
        initial_state = (*initial_state[:4], place.squeeze(1))
    o, (W, b, W_update, b_update, place) = ttt_linear(**arguments, initial_state=initial_state)
    return o, (W, b, W_update, b_update, place.unsqueeze(1).to(W.dtype))


def _draw(generator: torch.Generator, batch: int, length: int, H: int = H, D: int = D) -> Tensors:
    shape = (batch, length, H, D)
    state = normal(generator, batch, H, 2, D + 1, D)
    state[:, :, 1] /= 10
    parts = (state[:, :, 0, :D], state[:, :, 0, D], state[:, :, 1, :D], state[:, :, 1, D])
    place = torch.randint(16, (batch, 1), generator=generator)
    return {
        "q": normal(generator, *shape),
        "k": normal(generator, *shape),
        "v": normal(generator, *shape),
        "eta": 0.1 * torch.rand(shape[:3], generator=generator, dtype=torch.float64),
        "W0": normal(generator, H, D, D),
        "b0": normal(generator, H, D),
        "ln_weight": 1 + 0.1 * normal(generator, H, D),
        "ln_bias": 0.1 * normal(generator, H, D),
        "initial_state": torch.cat([*(x.flatten(1) for x in parts), place.to(torch.float64)], 1),
    }


def _draw_small(generator: torch.Generator, batch: int, length: int) -> Tensors:
    return _draw(generator, batch, length, 1, SMALL)


def _extreme(generator: torch.Generator, batch: int, length: int) -> Tensors:
    """Return steps without any learning beside the usual, keys of zero, and a model that starts from nothing."""
    drawn = _draw(generator, batch, length)
    learns = torch.randint(2, drawn["eta"].shape, generator=generator)
    keys = torch.randint(2, (*drawn["k"].shape[:3], 1), generator=generator)
    return {**drawn, "eta": drawn["eta"] * learns, "k": drawn["k"] * keys, "W0": 0 * drawn["W0"]}


def _state(**change: Any) -> tuple[Tensor, ...]:
    sizes = dict(zip(("W", "b", "W_update", "b_update"), SHAPES, strict=False))
    parts = {name: torch.zeros(2, *size) for name, size in sizes.items()}
    return tuple({**parts, "position": torch.zeros(2, dtype=torch.int64), **change}.values())


_MISTAKES = (
    ("q's axes", lambda t: {"q": t["q"][0]}, ValueError, r"ttt_linear: q has shape .*, expected \(B, L, H, K\)"),
    ("k's shape", lambda t: {"k": t["k"][..., :1]}, ValueError, "k has shape"),
    ("v's dtype", lambda t: {"v": t["v"].double()}, TypeError, "v has dtype float64, expected one of float32"),
    ("eta's shape", lambda t: {"eta": t["eta"][:, 1:]}, ValueError, "eta has shape"),
    ("eta's dtype", lambda t: {"eta": t["eta"].half()}, TypeError, "eta has dtype float16"),
    ("no step", lambda t: {n: t[n][:, :0] for n in ("q", "k", "v", "eta")}, ValueError, "length 0"),
    ("W0's shape", lambda t: {"W0": t["b0"]}, ValueError, r"W0 has shape .*, expected \(H, D, D\)"),
    ("W0 no tensor", lambda t: {"W0": None}, TypeError, "W0 is a NoneType, expected a tensor"),
    ("b0's dtype", lambda t: {"b0": t["b0"].int()}, TypeError, "b0 has dtype int32"),
    ("ln_weight's shape", lambda t: {"ln_weight": t["ln_weight"][0]}, ValueError, "ln_weight has shape"),
    ("ln_bias's device", lambda t: {"ln_bias": t["ln_bias"].to("meta")}, ValueError, "ln_bias is on meta"),
    ("reset's dtype", lambda t: {"reset": torch.zeros(2, 8)}, TypeError, "reset has dtype float32"),
    ("no mini-batch", lambda t: {"mini_batch": 0, "initial_state": None}, ValueError, "mini_batch is 0"),
)

CASES = (
    Case(
        name="ttt_linear",
        op="ttt_linear",
        call=packed(_call, SHAPES),
        inputs=_draw,
        sequences=frozenset({"q", "k", "v", "eta"}),
        extreme=_extreme,
        mistakes=_MISTAKES,
        variants=({}, {"mini_batch": 4}),
        dtypes=(torch.float32, torch.bfloat16, torch.float16),
        interpreted=17,
        # The backward pass holds four matrices and the tiles of a mini-batch, each float32 product split in three.
        spills=512,
    ),
    Case(
        name="ttt_linear-small",
        op="ttt_linear",
        # So few numbers are near each other by chance: a norm that divides by almost nothing tells of rounding alone.
        call=packed(partial(_call, epsilon=0.1), SMALL_SHAPES),
        inputs=_draw_small,
        sequences=frozenset({"q", "k", "v", "eta"}),
        extreme=_draw_small,
        variants=({"mini_batch": 2},),
        dtypes=(torch.float32, torch.float64),
        interpreted=0,
        spills=512,
    ),
)
