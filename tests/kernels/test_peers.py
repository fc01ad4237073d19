"""The ops beside other people's implementations of the same recurrences: outputs and gradients in float32."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from scanweave.kernels import cell_scan, delta_rule, dplr_scan, gated_linear_attention, mlstm_scan, ttt_linear, wkv4
from tests import matrix_inputs as inputs
from tests import peers

from .contract import BACKWARD_BOUND, FORWARD_BOUND, Tensors, assert_close

SHAPE = (2, 128, 3, 16)

Op = Callable[..., tuple[Tensor, object]]
Draw = Callable[[torch.Generator, inputs.Shape], Tensors]


def _trained(**tensors: Any) -> tuple[Tensor, None]:
    """Return the weights and the bias that ttt_linear ends with, (B, H, D + 1, D)."""
    state = ttt_linear(**tensors)[1]
    return torch.cat([state.W + state.W_update, (state.b + state.b_update).unsqueeze(2)], 2), None


# Op, its inputs, the peer, and the arguments in which the peer is not differentiable (None: it is in none).
CASES: dict[str, tuple[Op, Draw, Callable[[], peers.Peer], frozenset[str] | None]] = {
    # The peer knows its decays itself.
    "retention-fla": (gated_linear_attention, inputs.constant, peers.retention, frozenset({"log_decay"})),
    "constant-fla": (gated_linear_attention, inputs.constant, peers.simple_gla, frozenset()),
    "scalar-fla": (gated_linear_attention, inputs.per_head, peers.simple_gla, frozenset()),
    "gla-fla": (gated_linear_attention, inputs.per_row, peers.gla, frozenset()),
    "gla-fla-chunked": (gated_linear_attention, inputs.per_row, peers.gla_chunked, frozenset()),
    "rwkv6-fla": (gated_linear_attention, inputs.with_bonus, peers.rwkv6, frozenset()),
    "rwkv6-fla-chunked": (gated_linear_attention, inputs.with_bonus, peers.rwkv6_chunked, None),
    "ssd-transformers": (gated_linear_attention, inputs.per_head, peers.ssd, frozenset()),
    "mlstm-mlstm_kernels": (mlstm_scan, inputs.gates, peers.mlstm, frozenset()),
    "mlstm-xlstm": (mlstm_scan, inputs.gates, peers.mlstm_parallel, frozenset()),
    "delta-fla": (delta_rule, inputs.delta, peers.delta, frozenset()),
    "delta-transformers": (delta_rule, inputs.delta, peers.gated_delta_transformers, frozenset()),
    "gated_delta-fla": (delta_rule, inputs.gated_delta, peers.gated_delta, frozenset()),
    "gated_delta-transformers": (delta_rule, inputs.gated_delta, peers.gated_delta_transformers, frozenset()),
    "product-fla": (delta_rule, inputs.product, peers.delta_product, frozenset()),
    "rwkv7-fla": (dplr_scan, inputs.goose, peers.dplr, frozenset()),
    "rwkv7-fla-chunked": (dplr_scan, inputs.goose, peers.dplr_chunked, frozenset()),
    "rwkv4-transformers": (wkv4, inputs.channels, peers.wkv4, frozenset()),
    **{
        f"{cell}-flashrnn{suffix}": (
            partial(cell_scan, cell=cell),
            partial(inputs.cell, gates=gates),
            partial(peers.flashrnn, cell, f"vanilla{suffix}"),
            frozenset(),
        )
        for cell, gates, suffix in (
            ("elman", 1, ""),
            ("lstm", 4, ""),
            ("gru", 3, ""),
            ("slstm", 4, ""),
            ("lstm", 4, "_fwbw"),
            ("slstm", 4, "_fwbw"),
        )
    },
    "slstm-xlstm": (partial(cell_scan, cell="slstm"), inputs.cell, peers.xlstm_slstm, frozenset()),
    # The output is not compared, and the peer reads one step size of a mini-batch.
    "ttt-fla": (_trained, inputs.inner_model, peers.ttt_state, frozenset({"q", "eta"})),
}


@pytest.mark.parametrize("case", CASES)
def test_agrees(case: str) -> None:
    op, draw, find_peer, constants = CASES[case]
    peer = find_peer()
    drawn = draw(torch.Generator().manual_seed(0), SHAPE)
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
    do = inputs.normal(torch.Generator().manual_seed(1), *o.shape)
    wanted = {name: x for name, x in leaves.items() if x.requires_grad}
    return o.detach(), dict(zip(wanted, torch.autograd.grad(o, list(wanted.values()), do), strict=True))
