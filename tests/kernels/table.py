"""The table of ops: a new op adds a row here and has the whole contract tested."""

from __future__ import annotations

import torch

from scanweave.kernels import linear_scan

from .contract import Case, Tensors


def _normal(generator: torch.Generator, *shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=generator, dtype=dtype)


def _real_scan(generator: torch.Generator, batch: int, length: int) -> Tensors:
    return {
        "a": torch.rand(batch, length, 5, generator=generator, dtype=torch.float64) * 1.9 - 0.95,
        "b": _normal(generator, batch, length, 5),
        "initial_state": _normal(generator, batch, 5),
    }


def _complex_scan(generator: torch.Generator, batch: int, length: int) -> Tensors:
    radius = torch.rand(3, generator=generator, dtype=torch.float64) * 0.15 + 0.85
    angle = torch.rand(3, generator=generator, dtype=torch.float64) * 6.28
    return {
        "a": torch.polar(radius, angle).expand(1, 1, 3).contiguous(),
        "b": _normal(generator, batch, length, 3, dtype=torch.complex128),
        "initial_state": _normal(generator, batch, 3, dtype=torch.complex128),
    }


def _wide_scan(generator: torch.Generator, batch: int, length: int) -> Tensors:
    return {
        "a": torch.sigmoid(_normal(generator, 1, length, 3, 23)),
        "b": _normal(generator, batch, length, 3, 23),
        "initial_state": _normal(generator, batch, 3, 23),
    }


def _extreme_scan(generator: torch.Generator, batch: int, length: int) -> Tensors:
    drawn = _real_scan(generator, batch, length)
    gates = torch.tensor([0.0, 1.0, -1.0, 1e-38, 1 - 1e-7], dtype=torch.float64)
    pick = torch.randint(len(gates), drawn["a"].shape, generator=generator)
    return {**drawn, "a": gates[pick]}


def _extreme_complex(generator: torch.Generator, batch: int, length: int) -> Tensors:
    drawn = _complex_scan(generator, batch, length)
    return {**drawn, "a": torch.tensor([0, 1j, 1e-38], dtype=torch.complex128).view(1, 1, 3)}


_MISTAKES = (
    ("a dtype", lambda t: {"a": t["a"].int()}, TypeError, "linear_scan: a has dtype int32"),
    ("mixed dtypes", lambda t: {"b": t["b"].double()}, TypeError, "linear_scan: b has dtype float64"),
    ("no tensor", lambda t: {"a": 0.5}, TypeError, "linear_scan: a is a float, expected a tensor"),
    ("one axis", lambda t: {"a": t["a"][0, 0], "b": t["b"][0, 0]}, ValueError, r"b has shape \(5,\), expected \(B, L"),
    ("no step", lambda t: {"a": t["a"][:, :0], "b": t["b"][:, :0]}, ValueError, "length 0"),
    ("a's length", lambda t: {"a": t["a"][:, 1:3]}, ValueError, "a has shape"),
    ("a's axes", lambda t: {"a": t["a"].unsqueeze(0)}, ValueError, "a has shape"),
    ("state's shape", lambda t: {"initial_state": t["b"]}, ValueError, "initial_state has shape"),
    (
        "state's kind",
        lambda t: {"initial_state": t["b"][:, 0].to(torch.complex64)},
        TypeError,
        "initial_state has dtype",
    ),
    ("reset's shape", lambda t: {"reset": torch.zeros(2, 3, 1, dtype=torch.bool)}, ValueError, "reset has shape"),
    ("reset's dtype", lambda t: {"reset": torch.zeros(t["b"].shape[:2])}, TypeError, "reset has dtype float32"),
    ("device", lambda t: {"b": t["b"].to("meta")}, ValueError, "a is on cpu, expected meta"),
    ("NaN", lambda t: {"a": torch.full_like(t["a"], torch.nan)}, ValueError, r"a is nan at \(0, 0, 0\)"),
    ("infinite", lambda t: {"a": t["a"] / 0}, ValueError, "non-finite"),
)

CASES = {
    case.name: case
    for case in (
        Case(
            name="linear_scan",
            op="linear_scan",
            call=linear_scan,
            inputs=_real_scan,
            sequences=frozenset({"a", "b"}),
            extreme=_extreme_scan,
            variants=({}, {"reverse": True}),
            mistakes=_MISTAKES,
        ),
        Case(
            name="linear_scan-complex",
            op="linear_scan",
            call=linear_scan,
            inputs=_complex_scan,
            sequences=frozenset({"b"}),
            extreme=_extreme_complex,
            variants=({}, {"reverse": True}),
            dtypes=(torch.float32, torch.float64),
        ),
        Case(
            name="linear_scan-wide",
            op="linear_scan",
            call=linear_scan,
            inputs=_wide_scan,
            sequences=frozenset({"a", "b"}),
            extreme=_wide_scan,
            dtypes=(torch.float32,),
        ),
    )
}
