"""The ops beside other people's implementations of the same recurrences: outputs and gradients in float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from scanweave.kernels import delta_rule, dplr_scan, gated_linear_attention, mlstm_scan, ttt_linear
from tests import peers

from .contract import BACKWARD_BOUND, FORWARD_BOUND, Tensors, assert_close

BATCH, LENGTH, H, D = 2, 128, 3, 16
MINI_BATCH = 16

Op = Callable[..., tuple[Tensor, object]]
Draw = Callable[[torch.Generator], Tensors]


def _normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator)


def _qkv(g: torch.Generator) -> Tensors:
    return {name: _normal(g, BATCH, LENGTH, H, D) for name in "qkv"}


def _constant(g: torch.Generator) -> Tensors:
    return {**_qkv(g), "log_decay": torch.log1p(-(2.0 ** -torch.arange(5, 5 + H)))}


def _per_head(g: torch.Generator) -> Tensors:
    return {**_qkv(g), "log_decay": F.logsigmoid(_normal(g, BATCH, LENGTH, H))}


def _per_row(g: torch.Generator) -> Tensors:
    return {**_qkv(g), "log_decay": F.logsigmoid(_normal(g, BATCH, LENGTH, H, D))}


def _bonus(g: torch.Generator) -> Tensors:
    return {**_per_row(g), "bonus": _normal(g, H, D)}


def _gates(g: torch.Generator) -> Tensors:
    drawn = _qkv(g)
    # Keys and queries of one sign: where a normaliser cancels, no two forms agree to many digits.
    return {
        **{name: x.abs() if name in "qk" else x for name, x in drawn.items()},
        "input_gate": _normal(g, BATCH, LENGTH, H),
        "forget_gate": 2 + _normal(g, BATCH, LENGTH, H),
    }


def _delta(g: torch.Generator) -> Tensors:
    drawn = _qkv(g)
    return {**drawn, "k": F.normalize(drawn["k"], dim=-1), "beta": torch.sigmoid(_normal(g, BATCH, LENGTH, H))}


def _gated_delta(g: torch.Generator) -> Tensors:
    return {**_delta(g), "log_decay": F.logsigmoid(2 + _normal(g, BATCH, LENGTH, H))}


def _product(g: torch.Generator) -> Tensors:
    return {
        "q": _normal(g, BATCH, LENGTH, H, D),
        "k": F.normalize(_normal(g, BATCH, LENGTH, 2, H, D), dim=-1),
        "v": _normal(g, BATCH, LENGTH, 2, H, D),
        "beta": 2 * torch.sigmoid(_normal(g, BATCH, LENGTH, 2, H)),
        "log_decay": F.logsigmoid(2 + _normal(g, BATCH, LENGTH, H)),
    }


def _goose(g: torch.Generator) -> Tensors:
    removed = F.normalize(_normal(g, BATCH, LENGTH, H, D), dim=-1)
    rate = torch.sigmoid(_normal(g, BATCH, LENGTH, H, D))
    log_decay = -torch.exp(torch.tensor(-0.5)) * torch.sigmoid(_normal(g, BATCH, LENGTH, H, D))
    return {**_qkv(g), "a": -removed, "b": removed * rate, "log_decay": log_decay}


def _ttt(g: torch.Generator) -> Tensors:
    eta = torch.sigmoid(_normal(g, BATCH, LENGTH // MINI_BATCH, H)).repeat_interleave(MINI_BATCH, 1) / D
    return {
        **_qkv(g),
        "eta": eta,
        "W0": 0.02 * _normal(g, H, D, D),
        "b0": 0.02 * _normal(g, H, D),
        "ln_weight": 1 + 0.1 * _normal(g, H, D),
        "ln_bias": 0.1 * _normal(g, H, D),
    }


def _trained(**tensors: Any) -> tuple[Tensor, None]:
    """Return the weights and the bias that ttt_linear ends with, (B, H, D + 1, D)."""
    state = ttt_linear(**tensors)[1]
    return torch.cat([state.W + state.W_update, (state.b + state.b_update).unsqueeze(2)], 2), None


# Op, its inputs, the peer, and the arguments in which the peer is not differentiable (None: it is in none).
CASES: dict[str, tuple[Op, Draw, Callable[[], peers.Peer], frozenset[str] | None]] = {
    # The peer knows its decays itself.
    "retention-fla": (gated_linear_attention, _constant, peers.retention, frozenset({"log_decay"})),
    "constant-fla": (gated_linear_attention, _constant, peers.simple_gla, frozenset()),
    "scalar-fla": (gated_linear_attention, _per_head, peers.simple_gla, frozenset()),
    "gla-fla": (gated_linear_attention, _per_row, peers.gla, frozenset()),
    "gla-fla-chunked": (gated_linear_attention, _per_row, peers.gla_chunked, frozenset()),
    "rwkv6-fla": (gated_linear_attention, _bonus, peers.rwkv6, frozenset()),
    "rwkv6-fla-chunked": (gated_linear_attention, _bonus, peers.rwkv6_chunked, None),
    "ssd-transformers": (gated_linear_attention, _per_head, peers.ssd, frozenset()),
    "mlstm-mlstm_kernels": (mlstm_scan, _gates, peers.mlstm, frozenset()),
    "mlstm-xlstm": (mlstm_scan, _gates, peers.mlstm_parallel, frozenset()),
    "delta-fla": (delta_rule, _delta, peers.delta, frozenset()),
    "delta-transformers": (delta_rule, _delta, peers.gated_delta_transformers, frozenset()),
    "gated_delta-fla": (delta_rule, _gated_delta, peers.gated_delta, frozenset()),
    "gated_delta-transformers": (delta_rule, _gated_delta, peers.gated_delta_transformers, frozenset()),
    "product-fla": (delta_rule, _product, peers.delta_product, frozenset()),
    "rwkv7-fla": (dplr_scan, _goose, peers.dplr, frozenset()),
    "rwkv7-fla-chunked": (dplr_scan, _goose, peers.dplr_chunked, frozenset()),
    # The output is not compared, and the peer reads one step size of a mini-batch.
    "ttt-fla": (_trained, _ttt, peers.ttt_state, frozenset({"q", "eta"})),
}


@pytest.mark.parametrize("case", CASES)
def test_agrees(case: str) -> None:
    op, draw, find_peer, constants = CASES[case]
    peer = find_peer()
    drawn = draw(torch.Generator().manual_seed(0))
    wanted, wanted_gradients = _results(peer, drawn, constants)
    for backend in (None, "reference"):
        found, gradients = _results(lambda **t: op(**t, backend=backend)[0], drawn, constants)  # noqa: B023
        what = f"{case}, {backend or 'default'}"
        assert_close(found, wanted, FORWARD_BOUND[torch.float32], what)
        for name, gradient in gradients.items():
            assert_close(gradient, wanted_gradients[name], BACKWARD_BOUND[torch.float32], f"{what}, d{name}")


def _results(call: Callable[..., Tensor], drawn: Tensors, constants: frozenset[str] | None) -> tuple[Tensor, Tensors]:
    """Return the output and the gradients of all tensors but the constants; of none where those are None."""
    if constants is None:
        return call(**drawn), {}
    leaves = {name: x.clone().requires_grad_(name not in constants) for name, x in drawn.items()}
    o = call(**leaves)
    do = _normal(torch.Generator().manual_seed(1), *o.shape)
    wanted = {name: x for name, x in leaves.items() if x.requires_grad}
    return o.detach(), dict(zip(wanted, torch.autograd.grad(o, list(wanted.values()), do), strict=True))
