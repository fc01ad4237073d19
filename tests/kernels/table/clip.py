"""The rows of the ops whose sequences are clips."""

from __future__ import annotations

import torch

from scanweave.kernels import conv_scan

from ..contract import Case, Tensors, normal

HEIGHT, WIDTH, STATES = 2, 1, 3  # no two alike


def _constant(generator: torch.Generator, batch: int, length: int) -> Tensors:
    radius, angle = (torch.rand(STATES, generator=generator, dtype=torch.float64) for _ in range(2))
    return {
        "a": torch.polar(0.85 + 0.15 * radius, 6.28 * angle),
        "bu": normal(generator, batch, length, HEIGHT, WIDTH, STATES, dtype=torch.complex128),
        "initial_state": normal(generator, batch, HEIGHT, WIDTH, STATES, dtype=torch.complex128),
    }


def _changing(generator: torch.Generator, batch: int, length: int) -> Tensors:
    """Return real decays of every frame, the same at all pixels."""
    return {
        "a": torch.sigmoid(normal(generator, batch, length, 1, 1, STATES)),
        "bu": normal(generator, batch, length, HEIGHT, WIDTH, STATES),
        "initial_state": normal(generator, batch, HEIGHT, WIDTH, STATES),
    }


def _extreme_constant(generator: torch.Generator, batch: int, length: int) -> Tensors:
    return {**_constant(generator, batch, length), "a": torch.tensor([0, 1j, 1e-38], dtype=torch.complex128)}


def _extreme_changing(generator: torch.Generator, batch: int, length: int) -> Tensors:
    drawn = _changing(generator, batch, length)
    gates = torch.tensor([0.0, 1.0, -1.0, 1e-38, 1 - 1e-7], dtype=torch.float64)
    return {**drawn, "a": gates[torch.randint(len(gates), drawn["a"].shape, generator=generator)]}


_CONSTANT = Case(
    name="conv_scan",
    op="linear_scan",
    call=conv_scan,
    inputs=_constant,
    sequences=frozenset({"bu"}),
    extreme=_extreme_constant,
    dtypes=(torch.float32, torch.float64),
    mistakes=(
        ("bu's axes", lambda t: {"bu": t["bu"][0]}, ValueError, r"conv_scan: bu has shape .*\(B, L, H, W, P\)"),
        ("bu's dtype", lambda t: {"bu": t["bu"].real.int()}, TypeError, "conv_scan: bu has dtype int32"),
        ("no frame", lambda t: {"bu": t["bu"][:, :0]}, ValueError, "bu has length 0"),
        ("a's dtype", lambda t: {"a": t["a"].real}, TypeError, "a has dtype float32, expected one of complex64"),
        ("a's states", lambda t: {"a": t["a"][:1]}, ValueError, r"a has shape \(1,\), expected \(P,\) = \(3,\)"),
        ("a's axes", lambda t: {"a": t["a"][None]}, ValueError, r"a has shape \(1, 3\)"),
        ("a's pixels", lambda t: {"a": t["a"].expand(1, 1, 3, 1, 3)}, ValueError, r"a has shape \(1, 1, 3, 1, 3\)"),
        ("a's device", lambda t: {"a": t["a"].to("meta")}, ValueError, "conv_scan: a is on meta, expected cpu"),
        (
            "state's shape",
            lambda t: {"initial_state": t["bu"]},
            ValueError,
            r"initial_state has shape .*\(B, H, W, P\)",
        ),
        ("state's kind", lambda t: {"initial_state": t["bu"][:, 0].real}, TypeError, "initial_state has dtype float32"),
        ("reset's shape", lambda t: {"reset": torch.zeros(2, 3, dtype=torch.bool)}, ValueError, "reset has shape"),
        ("reset's dtype", lambda t: {"reset": torch.zeros(2, 8)}, TypeError, "reset has dtype float32"),
        ("NaN", lambda t: {"a": t["a"] * torch.nan}, ValueError, "a is .*nan.* at"),
    ),
    # The same kernels as linear_scan's, which the interpreter runs; PyTorch writes the decay out at the pixels.
    interpreted=0,
    composed=True,
)

_CHANGING = Case(
    name="conv_scan-changing",
    op="linear_scan",
    call=conv_scan,
    inputs=_changing,
    sequences=frozenset({"a", "bu"}),
    refused=frozenset({"a"}),
    extreme=_extreme_changing,
    dtypes=(torch.float32, torch.bfloat16),
    interpreted=0,
    composed=True,
)

CASES = (_CONSTANT, _CHANGING)
