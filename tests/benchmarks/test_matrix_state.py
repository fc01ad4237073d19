"""The ops with a matrix state beside other people's forms of the same recurrences, and beside their products' floor."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from scanweave.kernels import delta_rule, dplr_scan, gated_linear_attention, mlstm_scan
from tests import matrix_inputs as inputs
from tests import peers

from .compare import compare
from .floor import gemm_rate

pytestmark = pytest.mark.bench

SHAPE = (4, 1024, 4, 64)
TITLE = "B {} L {} H {} K = V = {}".format(*SHAPE)


@dataclass(frozen=True)
class Bench:
    """One recurrence, timed.

    Args:
        op: The package's function.
        draw: Draws its tensors.
        products: How often each step multiplies the state by a vector or adds a rank-one product to it.
        forward: Peers for a forward pass, by the table's name.
        backward: Those of them that have a gradient of use: the loops' takes a time quadratic in L.
    """

    op: Callable[..., tuple[Tensor, Any]]
    draw: Callable[[torch.Generator, inputs.Shape], inputs.Tensors]
    products: int
    forward: dict[str, Callable[[], peers.Peer]]
    backward: Iterable[str]


BENCHES = {
    "retention": Bench(
        gated_linear_attention,
        inputs.constant,
        2,
        {"fla chunked": peers.simple_gla, "fla parallel": peers.retention},
        ("fla chunked",),
    ),
    "GLA": Bench(
        gated_linear_attention,
        inputs.per_row,
        2,
        {"fla chunked (dplr)": peers.gla_chunked, "fla loop": peers.gla},
        ("fla chunked (dplr)",),
    ),
    "SSD": Bench(
        gated_linear_attention,
        inputs.per_head,
        2,
        {"transformers": peers.ssd, "fla chunked": peers.simple_gla},
        ("transformers", "fla chunked"),
    ),
    "mLSTM": Bench(
        mlstm_scan,
        inputs.gates,
        2,
        {"mlstm_kernels": peers.mlstm, "mlstm_kernels custbw": lambda: peers.mlstm("native_custbw")},
        ("mlstm_kernels", "mlstm_kernels custbw"),
    ),
    "RWKV-6": Bench(
        gated_linear_attention,
        inputs.with_bonus,
        2,
        {"fla chunked": peers.rwkv6_chunked, "fla loop": peers.rwkv6},
        (),
    ),
    "RWKV-7": Bench(dplr_scan, inputs.goose, 4, {"fla chunked": peers.dplr_chunked}, ("fla chunked",)),
    "delta rule": Bench(
        delta_rule,
        inputs.delta,
        3,
        {"fla chunked": peers.delta, "transformers": peers.gated_delta_transformers},
        ("fla chunked", "transformers"),
    ),
    "gated delta rule": Bench(
        delta_rule,
        inputs.gated_delta,
        3,
        {"fla chunked": peers.gated_delta, "transformers": peers.gated_delta_transformers},
        ("fla chunked", "transformers"),
    ),
}


def _attention(q: Tensor, k: Tensor, v: Tensor, **gates: Tensor) -> Tensor:
    """Return causal softmax attention: another function of the same tensors, to measure by."""
    return F.scaled_dot_product_attention(*peers.by_head(q, k, v), is_causal=True).transpose(1, 2)


def _forms(bench: Bench, names: Iterable[str]) -> dict[str, peers.Peer]:
    """Return the package's forms, the peers of those names, and softmax attention."""
    return {
        "scanweave": lambda **t: bench.op(**t)[0],
        "chunked": lambda **t: bench.op(**t, backend="chunked")[0],
        **{name: bench.forward[name]() for name in names},
        "softmax attention": _attention,
    }


def _floor(bench: Bench, passes: int) -> float:
    """Return the seconds that the state's products alone take at the rate of a large matrix product.

    A product of a K x V state and a vector is 2 K V operations; each has two products of its size in its gradient, so
    that forward and backward are three passes. Decays, exponentials and memory count nothing.
    """
    batch, length, heads, width = SHAPE
    return passes * batch * length * heads * bench.products * 2 * width**2 / gemm_rate()


def _lead(title: str, found: dict[str, float], rivals: Iterable[str]) -> float:
    """Return, and print, how many times as fast as its best peer the op is."""
    best = min((found[rival], rival) for rival in rivals)
    lead = best[0] / found["scanweave"]
    print(f"{title}: {lead:.1f} times as fast as {best[1]}")
    return lead


@pytest.mark.parametrize("name", BENCHES)
@torch.no_grad()
def test_forward(name: str, bench_out: Path | None) -> None:
    bench = BENCHES[name]
    tensors = bench.draw(torch.Generator().manual_seed(0), SHAPE)
    forms = _forms(bench, bench.forward)
    wanted = forms["scanweave"](**tensors)
    for rival in bench.forward:
        # Rounding of long sums differs; the agreement's own test is tests/kernels/test_peers.py.
        assert (forms[rival](**tensors) - wanted).abs().max() <= 1e-3 * wanted.abs().max(), rival
    calls = {label: lambda form=form: form(**tensors) for label, form in forms.items()}
    title = f"{name} forward"
    found = compare(f"{title}, {TITLE}", calls, floor_seconds=_floor(bench, 1), out=bench_out, rounds=7)
    assert _lead(title, found, bench.forward) > 1


@pytest.mark.parametrize("name", BENCHES)
def test_forward_and_backward(name: str, bench_out: Path | None) -> None:
    bench = BENCHES[name]
    tensors = bench.draw(torch.Generator().manual_seed(0), SHAPE)
    do = inputs.normal(torch.Generator().manual_seed(1), *SHAPE)
    forms = _forms(bench, bench.backward)
    calls = {label: _gradient(form, tensors, do) for label, form in forms.items()}
    title = f"{name} forward + backward"
    found = compare(f"{title}, {TITLE}", calls, floor_seconds=_floor(bench, 3), out=bench_out, rounds=5)
    # Where no peer has a gradient, the package's own form in PyTorch stands for one.
    assert _lead(title, found, bench.backward or ["chunked"]) > 1


def _gradient(form: peers.Peer, tensors: inputs.Tensors, do: Tensor) -> Callable[[], object]:
    leaves = {name: x.clone().requires_grad_() for name, x in tensors.items()}
    return lambda: torch.autograd.grad(form(**leaves), list(leaves.values()), do, allow_unused=True)
