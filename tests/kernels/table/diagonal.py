"""The rows of the ops whose states are vectors with a decay per entry."""

from __future__ import annotations

import torch

from scanweave.kernels import linear_scan, selective_scan

from ..contract import Case, Tensors, normal


def _real_scan(generator: torch.Generator, batch: int, length: int) -> Tensors:
    return {
        "a": torch.rand(batch, length, 5, generator=generator, dtype=torch.float64) * 1.9 - 0.95,
        "b": normal(generator, batch, length, 5),
        "initial_state": normal(generator, batch, 5),
    }


def _complex_scan(generator: torch.Generator, batch: int, length: int) -> Tensors:
    radius = torch.rand(3, generator=generator, dtype=torch.float64) * 0.15 + 0.85
    angle = torch.rand(3, generator=generator, dtype=torch.float64) * 6.28
    return {
        "a": torch.polar(radius, angle).expand(1, 1, 3).contiguous(),
        "b": normal(generator, batch, length, 3, dtype=torch.complex128),
        "initial_state": normal(generator, batch, 3, dtype=torch.complex128),
    }


def _wide_scan(generator: torch.Generator, batch: int, length: int) -> Tensors:
    return {
        "a": torch.sigmoid(normal(generator, 1, length, 3, 23)),
        "b": normal(generator, batch, length, 3, 23),
        "initial_state": normal(generator, batch, 3, 23),
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


def _mamba(generator: torch.Generator, batch: int, length: int) -> Tensors:
    channels, groups, n = 6, 2, 3
    return {
        "u": normal(generator, batch, length, channels),
        "dt": normal(generator, batch, length, channels),
        "A": -2 * torch.rand(channels, n, generator=generator, dtype=torch.float64),
        "B": normal(generator, batch, length, groups, n),
        "C": normal(generator, batch, length, groups, n),
        "D": normal(generator, channels),
        "z": normal(generator, batch, length, channels),
        "dt_bias": normal(generator, channels),
        "initial_state": normal(generator, batch, channels, n),
    }


def _plain_mamba(generator: torch.Generator, batch: int, length: int) -> Tensors:
    channels, n = 19, 5
    return {
        "u": normal(generator, batch, length, channels),
        "dt": torch.rand(batch, length, channels, generator=generator, dtype=torch.float64),
        "A": -torch.rand(channels, n, generator=generator, dtype=torch.float64),
        "B": normal(generator, batch, length, n),
        "C": normal(generator, batch, length, n),
        "initial_state": normal(generator, batch, channels, n),
    }


def _extreme_mamba(generator: torch.Generator, batch: int, length: int) -> Tensors:
    drawn = _mamba(generator, batch, length)
    steps = torch.tensor([-200.0, -30.0, 0.0, 30.0, 200.0], dtype=torch.float64)
    decays = torch.tensor([0.0, -1e-30, -1e-3, -100.0], dtype=torch.float64)
    return {
        **drawn,
        "dt": steps[torch.randint(len(steps), drawn["dt"].shape, generator=generator)],
        "A": decays[torch.randint(len(decays), drawn["A"].shape, generator=generator)],
        "z": 60 * drawn["z"],
    }


def _natural(tensors: Tensors) -> torch.Tensor:
    return torch.arange(tensors["u"].shape[1]).repeat(2, 1)


def _twice(tensors: Tensors) -> torch.Tensor:
    orders = _natural(tensors)
    orders[1, 1] = 0
    return orders


_MAMBA_MISTAKES = (
    ("u's axes", lambda t: {"u": t["u"][0]}, ValueError, r"u has shape .*, expected \(B, L, C\)"),
    ("u's groups", lambda t: {n: t[n].unflatten(2, (3, 2)) for n in ("u", "dt", "z")}, ValueError, "u has 3 groups"),
    ("orders' shape", lambda t: {"orders": torch.arange(8)}, ValueError, r"orders has shape .*, expected \(G, L\)"),
    ("orders' dtype", lambda t: {"orders": torch.zeros(2, 8)}, TypeError, "orders has dtype float32"),
    ("a place twice", lambda t: {"orders": _twice(t)}, ValueError, r"orders\[1\] does not visit place 1 once"),
    (
        "orders and reset",
        lambda t: {"orders": _natural(t), "reset": torch.zeros(t["u"].shape[:2], dtype=torch.bool)},
        ValueError,
        "reset is given beside orders",
    ),
    ("u's dtype", lambda t: {"u": t["u"].long()}, TypeError, "selective_scan: u has dtype int64"),
    ("no step", lambda t: {n: t[n][:, :0] for n in ("u", "dt", "B", "C", "z")}, ValueError, "length 0"),
    ("dt's shape", lambda t: {"dt": t["dt"][..., :1]}, ValueError, "dt has shape"),
    ("dt's dtype", lambda t: {"dt": t["dt"].double()}, TypeError, "dt has dtype float64, expected one of float32"),
    ("z's shape", lambda t: {"z": t["z"][:1]}, ValueError, "z has shape"),
    ("A's shape", lambda t: {"A": t["A"][0]}, ValueError, r"A has shape .*, expected \(C, N\) with C = 6"),
    ("A's dtype", lambda t: {"A": t["A"].half()}, TypeError, "A has dtype float16"),
    ("B's axes", lambda t: {"B": t["B"][0, 0]}, ValueError, "B has shape"),
    ("B no tensor", lambda t: {"B": 1.0}, TypeError, "B is a float, expected a tensor"),
    ("groups", lambda t: {"B": t["B"].repeat(1, 1, 2, 1)}, ValueError, "where G divides the 6 channels"),
    ("C's groups", lambda t: {"C": t["C"][:, :, :1]}, ValueError, "C has shape"),
    ("C no tensor", lambda t: {"C": None}, TypeError, "C is a NoneType, expected a tensor"),
    ("D's shape", lambda t: {"D": t["D"][:1]}, ValueError, "D has shape"),
    ("D's dtype", lambda t: {"D": t["D"].int()}, TypeError, "D has dtype int32"),
    ("dt_bias's shape", lambda t: {"dt_bias": t["D"][:, None]}, ValueError, "dt_bias has shape"),
    ("state's shape", lambda t: {"initial_state": t["A"]}, ValueError, "initial_state has shape"),
    ("state's dtype", lambda t: {"initial_state": t["initial_state"].int()}, TypeError, "initial_state has dtype"),
    ("reset's shape", lambda t: {"reset": torch.zeros(2, 3, dtype=torch.bool)}, ValueError, "reset has shape"),
    ("reset's dtype", lambda t: {"reset": torch.zeros(2, 8)}, TypeError, "reset has dtype float32"),
    ("device", lambda t: {"A": t["A"].to("meta")}, ValueError, "A is on meta, expected cpu"),
    ("eigenvalues", lambda t: {"eigenvalues": "complex"}, ValueError, "eigenvalues is 'complex', expected one of"),
    ("NaN in A", lambda t: {"A": torch.full_like(t["A"], torch.nan)}, ValueError, r"A is nan at \(0, 0\)"),
    ("infinite A", lambda t: {"A": t["A"] / 0}, ValueError, r"A is -inf at \(0, 0\)"),
    ("NaN in dt", lambda t: {"dt": t["dt"] * torch.nan}, ValueError, r"dt is nan at \(0, 0, 0\)"),
)

CASES = (
    Case(
        name="linear_scan",
        op="linear_scan",
        call=linear_scan,
        inputs=_real_scan,
        sequences=frozenset({"a", "b"}),
        refused=frozenset({"a"}),
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
        refused=frozenset({"a"}),
        extreme=_wide_scan,
        dtypes=(torch.float32,),
    ),
    Case(
        name="selective_scan",
        op="selective_scan",
        call=selective_scan,
        inputs=_mamba,
        sequences=frozenset({"u", "dt", "B", "C", "z"}),
        extreme=_extreme_mamba,
        variants=({}, {"eigenvalues": "signed"}),
        mistakes=_MAMBA_MISTAKES,
        interpreted=64,
    ),
    Case(
        name="selective_scan-plain",
        op="selective_scan",
        call=selective_scan,
        inputs=_plain_mamba,
        sequences=frozenset({"u", "dt", "B", "C"}),
        extreme=_plain_mamba,
        variants=({"dt_softplus": False},),
        dtypes=(torch.float32,),
        interpreted=64,
    ),
)
