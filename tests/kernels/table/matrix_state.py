"""The rows of the ops whose states are matrices, one per head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from scanweave.kernels import delta_rule, dplr_scan, gated_linear_attention, mlstm_scan

from ..contract import Case, Tensors, normal, packed

H, K, V = 2, 5, 6
DECAYS = (0.0, -1e-30, -1e-3, -30.0, -200.0, -torch.inf)

Draw = Callable[[torch.Generator, int, int], Tensors]


def _uniform(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=generator, dtype=torch.float64)


def _pick(generator: torch.Generator, values: tuple[float, ...], *shape: int) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)[torch.randint(len(values), shape, generator=generator)]


def _attention(generator: torch.Generator, batch: int, length: int) -> Tensors:
    return {
        "q": normal(generator, batch, length, H, K),
        "k": normal(generator, batch, length, H, K),
        "v": normal(generator, batch, length, H, V),
        "initial_state": normal(generator, batch, H, K, V),
    }


def _per_head(generator: torch.Generator, batch: int, length: int) -> Tensors:
    return {**_attention(generator, batch, length), "log_decay": -_uniform(generator, batch, length, H)}


def _constant(generator: torch.Generator, batch: int, length: int) -> Tensors:
    decay = 1 - 2.0 ** -torch.arange(3.0, 3 + H, dtype=torch.float64)
    return {**_attention(generator, batch, length), "log_decay": decay.log()}


def _per_row(generator: torch.Generator, batch: int, length: int) -> Tensors:
    return {**_attention(generator, batch, length), "log_decay": -_uniform(generator, batch, length, H, K)}


def _with_bonus(generator: torch.Generator, batch: int, length: int) -> Tensors:
    return {**_per_row(generator, batch, length), "bonus": normal(generator, H, K)}


def _delta(generator: torch.Generator, batch: int, length: int) -> Tensors:
    drawn = _attention(generator, batch, length)
    return {**drawn, "k": F.normalize(drawn["k"], dim=-1), "beta": 2 * _uniform(generator, batch, length, H)}


def _product(generator: torch.Generator, batch: int, length: int) -> Tensors:
    return {
        **_per_head(generator, batch, length),
        "k": F.normalize(normal(generator, batch, length, 2, H, K), dim=-1),
        "v": normal(generator, batch, length, 2, H, V),
        "beta": 2 * _uniform(generator, batch, length, 2, H),
    }


def _goose(generator: torch.Generator, batch: int, length: int) -> Tensors:
    removed = F.normalize(normal(generator, batch, length, H, K), dim=-1)
    rate = _uniform(generator, batch, length, H, K)
    return {**_per_row(generator, batch, length), "a": -removed, "b": removed * rate}


def _mlstm(generator: torch.Generator, batch: int, length: int) -> Tensors:
    return {
        **_attention(generator, batch, length),
        "input_gate": 2 * normal(generator, batch, length, H),
        "forget_gate": 2 * normal(generator, batch, length, H),
        "initial_state": normal(generator, batch, H * (K * V + K + 1)),
    }


def _extreme(draw: Draw, **gates: tuple[float, ...]) -> Draw:
    """Return a drawing function whose named gates take only the given values."""

    def drawn(generator: torch.Generator, batch: int, length: int) -> Tensors:
        plain = draw(generator, batch, length)
        return plain | {name: _pick(generator, values, *plain[name].shape) for name, values in gates.items()}

    return drawn


def _extreme_mlstm(generator: torch.Generator, batch: int, length: int) -> Tensors:
    gates = {"input_gate": (-60.0, -5.0, 0.0, 60.0), "forget_gate": (-200.0, -30.0, 0.0, 30.0, 200.0)}
    drawn = _extreme(_mlstm, **gates)(generator, batch, length)
    # Terms of one sign: a normaliser that cancels to nothing is ill-conditioned in any form. And no two sides of the
    # maximum that are equal: its gradient would be a matter of rounding.
    drawn["input_gate"] += 0.1 * normal(generator, *drawn["input_gate"].shape)
    return {name: t.abs() if name in ("q", "k", "initial_state") else t for name, t in drawn.items()}


def _positive(t: Tensors) -> dict[str, Any]:
    spoilt = t["log_decay"].clone()
    spoilt.view(-1)[1] = 0.5
    return {"log_decay": spoilt}


def _shared_mistakes(op: str) -> tuple[Any, ...]:
    return (
        ("q's axes", lambda t: {"q": t["q"][0]}, ValueError, rf"{op}: q has shape .*, expected \(B, L, H, K\)"),
        ("q's dtype", lambda t: {"q": t["q"].int()}, TypeError, f"{op}: q has dtype int32"),
        ("no step", lambda t: {"q": t["q"][:, :0]}, ValueError, "length 0"),
        ("no tensor", lambda t: {"k": 0.5}, TypeError, "k is a float, expected a tensor"),
        ("k's heads", lambda t: {"k": t["k"][..., :1, :]}, ValueError, "k has shape"),
        ("k's dtype", lambda t: {"k": t["k"].double()}, TypeError, "k has dtype float64, expected one of float32"),
        ("v's length", lambda t: {"v": t["v"][:, 1:]}, ValueError, "v has shape"),
        ("v's axes", lambda t: {"v": t["v"][..., 0]}, ValueError, r"v (has shape )?\(2, 8, 2\)"),
        ("reset's shape", lambda t: {"reset": torch.zeros(2, 3, dtype=torch.bool)}, ValueError, "reset has shape"),
        ("reset's dtype", lambda t: {"reset": torch.zeros(2, 8)}, TypeError, "reset has dtype float32"),
        ("device", lambda t: {"v": t["v"].to("meta")}, ValueError, "v is on meta, expected cpu"),
    )


_STATE_MISTAKES = (
    ("state's shape", lambda t: {"initial_state": t["q"]}, ValueError, "initial_state has shape"),
    ("state's dtype", lambda t: {"initial_state": t["initial_state"].int()}, TypeError, "initial_state has dtype"),
)
_DECAY_MISTAKES = (
    ("log_decay's dtype", lambda t: {"log_decay": t["log_decay"].half()}, TypeError, "log_decay has dtype float16"),
    ("log_decay's shape", lambda t: {"log_decay": t["log_decay"][:, 1:]}, ValueError, "log_decay has shape"),
    ("positive", _positive, ValueError, r"log_decay is 0.5 at \(0, 0,"),
    ("NaN", lambda t: {"log_decay": t["log_decay"] * torch.nan}, ValueError, r"log_decay is nan at \(0, 0, 0"),
    ("infinite", lambda t: {"log_decay": -t["log_decay"] / 0}, ValueError, r"log_decay is inf at \(0, 0, 0"),
)

CASES = (
    Case(
        name="gated_linear_attention",
        op="gated_linear_attention",
        call=gated_linear_attention,
        inputs=_per_head,
        sequences=frozenset({"q", "k", "v", "log_decay"}),
        refused=frozenset({"log_decay"}),
        extreme=_extreme(_per_head, log_decay=DECAYS),
        mistakes=(*_shared_mistakes("gated_linear_attention"), *_STATE_MISTAKES, *_DECAY_MISTAKES),
        interpreted=65,
    ),
    Case(
        name="gated_linear_attention-constant",
        op="gated_linear_attention",
        call=gated_linear_attention,
        inputs=_constant,
        sequences=frozenset({"q", "k", "v"}),
        extreme=_extreme(_constant, log_decay=(0.0, -torch.inf)),
        dtypes=(torch.float32,),
        mistakes=(("heads", lambda t: {"log_decay": t["log_decay"][:1]}, ValueError, r"log_decay has shape \(1,\)"),),
        interpreted=0,
    ),
    Case(
        name="gated_linear_attention-rows",
        op="gated_linear_attention",
        call=gated_linear_attention,
        inputs=_per_row,
        sequences=frozenset({"q", "k", "v", "log_decay"}),
        refused=frozenset({"log_decay"}),
        extreme=_extreme(_per_row, log_decay=DECAYS),
        variants=({"scale": 0.7},),
        dtypes=(torch.float32,),
        interpreted=0,
    ),
    Case(
        name="gated_linear_attention-bonus",
        op="gated_linear_attention",
        call=gated_linear_attention,
        inputs=_with_bonus,
        sequences=frozenset({"q", "k", "v", "log_decay"}),
        refused=frozenset({"log_decay"}),
        extreme=_extreme(_with_bonus, log_decay=DECAYS),
        mistakes=(
            ("bonus's shape", lambda t: {"bonus": t["bonus"][:1]}, ValueError, "bonus has shape"),
            ("bonus's dtype", lambda t: {"bonus": t["bonus"].int()}, TypeError, "bonus has dtype int32"),
        ),
        interpreted=0,
    ),
    Case(
        name="delta_rule",
        op="delta_rule",
        call=delta_rule,
        inputs=_delta,
        sequences=frozenset({"q", "k", "v", "beta"}),
        extreme=_extreme(_delta, beta=(0.0, 1.0, 2.0)),
        mistakes=(
            *_shared_mistakes("delta_rule"),
            *_STATE_MISTAKES,
            ("beta's shape", lambda t: {"beta": t["beta"][..., :1]}, ValueError, "beta has shape"),
            ("beta's dtype", lambda t: {"beta": t["beta"].half()}, TypeError, "beta has dtype float16"),
            ("mixed axes", lambda t: {"k": t["k"].unsqueeze(2)}, ValueError, r"expected \(B, L, n, H, V\)"),
            ("no key", lambda t: {n: t[n].unsqueeze(2)[:, :, :0] for n in ("k", "v", "beta")}, ValueError, "n >= 1"),
        ),
        interpreted=65,
    ),
    Case(
        name="delta_rule-product",
        op="delta_rule",
        call=delta_rule,
        inputs=_product,
        sequences=frozenset({"q", "k", "v", "beta", "log_decay"}),
        refused=frozenset({"log_decay"}),
        extreme=_extreme(_product, log_decay=DECAYS, beta=(0.0, 1.0, 2.0)),
        dtypes=(torch.float32, torch.float64),
        mistakes=_DECAY_MISTAKES,
        interpreted=0,
    ),
    Case(
        name="dplr_scan",
        op="dplr_scan",
        call=dplr_scan,
        inputs=_goose,
        sequences=frozenset({"q", "k", "v", "a", "b", "log_decay"}),
        refused=frozenset({"log_decay"}),
        extreme=_extreme(_goose, log_decay=DECAYS),
        mistakes=(
            *_shared_mistakes("dplr_scan"),
            *_STATE_MISTAKES,
            *_DECAY_MISTAKES,
            ("a's shape", lambda t: {"a": t["a"][..., :1]}, ValueError, "a has shape"),
            ("b's dtype", lambda t: {"b": t["b"].half()}, TypeError, "b has dtype float16"),
        ),
        interpreted=0,
    ),
    Case(
        name="mlstm_scan",
        op="gated_linear_attention",
        call=packed(mlstm_scan, ((H, K, V), (H, K), (H,))),
        inputs=_mlstm,
        sequences=frozenset({"q", "k", "v", "input_gate", "forget_gate"}),
        refused=frozenset({"input_gate", "forget_gate"}),
        extreme=_extreme_mlstm,
        mistakes=(
            *_shared_mistakes("mlstm_scan"),
            ("gate's shape", lambda t: {"input_gate": t["q"]}, ValueError, "input_gate has shape"),
            ("gate's dtype", lambda t: {"forget_gate": t["q"][..., 0].half()}, TypeError, "forget_gate has dtype"),
        ),
        interpreted=0,
        calls=2,
        composed=True,
    ),
)
