"""The row of pLSTM along a sequence."""

from __future__ import annotations

import torch

from scanweave.kernels import plstm_scan_1d

from ..contract import Case, Tensors, normal

H, K, V = 2, 3, 4
DECAYS = torch.tensor([0.0, -1e-30, -1e-3, -30.0, -200.0, -torch.inf], dtype=torch.float64)


def _draw(generator: torch.Generator, batch: int, length: int) -> Tensors:
    steps = (batch, length, H)
    return {
        "q": normal(generator, *steps, K),
        "k": normal(generator, *steps, K),
        "v": normal(generator, *steps, V),
        "source": normal(generator, *steps),
        "log_transition": -torch.rand(*steps, generator=generator, dtype=torch.float64),
        "mark": normal(generator, *steps),
        "direct": normal(generator, *steps),
        "initial_state": normal(generator, batch, H, K, V),
    }


def _extreme(generator: torch.Generator, batch: int, length: int) -> Tensors:
    drawn = _draw(generator, batch, length)
    drawn["log_transition"] = DECAYS[torch.randint(len(DECAYS), drawn["mark"].shape, generator=generator)]
    for name in ("source", "mark"):
        drawn[name] = drawn[name].sign().clamp(min=0)
    return drawn


CASES = (
    Case(
        name="plstm_scan_1d",
        op="gated_linear_attention",
        call=plstm_scan_1d,
        inputs=_draw,
        sequences=frozenset({"q", "k", "v", "source", "log_transition", "mark", "direct"}),
        refused=frozenset({"log_transition"}),
        extreme=_extreme,
        mistakes=(
            ("q's axes", lambda t: {"q": t["q"][..., 0]}, ValueError, r"plstm_scan_1d: q has shape .*\(B, L, H, K\)"),
            ("k's width", lambda t: {"k": t["k"][..., :1]}, ValueError, "plstm_scan_1d: k has shape"),
            ("v's dtype", lambda t: {"v": t["v"].double()}, TypeError, "v has dtype float64"),
            ("mark's shape", lambda t: {"mark": t["mark"][..., :1]}, ValueError, r"mark has .*\(B, L, H\)"),
            ("source's dtype", lambda t: {"source": t["source"].half()}, TypeError, "source has dtype float16"),
            ("direct's device", lambda t: {"direct": t["direct"].to("meta")}, ValueError, "direct is on meta"),
            ("growth", lambda t: {"log_transition": t["log_transition"].abs() + 1}, ValueError, "log_decay"),
            ("state", lambda t: {"initial_state": t["initial_state"][:, :1]}, ValueError, "initial_state has"),
        ),
        interpreted=0,
        composed=True,
    ),
)
