"""Recurrent cells in heads beside torch.nn's layers and the loops of flashrnn and xlstm, on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from scanweave.kernels import cell_scan

from .. import matrix_inputs as inputs
from .. import peers
from .compare import compare
from .floor import gemm_rate

pytestmark = pytest.mark.bench

BATCH, LENGTH, HEADS, WIDTH = 16, 512, 4, 64
TITLE = f"B {BATCH} L {LENGTH}, {HEADS} x {WIDTH}"
GATES = {"lstm": 4, "gru": 3, "slstm": 4}
LAYERS: dict[str, type[nn.RNNBase]] = {"lstm": nn.LSTM, "gru": nn.GRU}
LAYER = "torch.nn, one per head"
XLSTM_ROUNDS = 1  # it takes many seconds a call: timed apart, so that the others get their rounds

Call = Callable[[], object]


def _recurrences(cell: str) -> dict[str, peers.Peer]:
    """Return functions of wx, R and bias."""
    found: dict[str, peers.Peer] = {
        "scanweave": lambda wx, R, bias: cell_scan(wx, R, bias, cell=cell)[0],
        "chunked": lambda wx, R, bias: cell_scan(wx, R, bias, cell=cell, backend="chunked")[0],
        "flashrnn vanilla": peers.flashrnn(cell),
    }
    if cell != "gru":
        found["flashrnn vanilla_fwbw"] = peers.flashrnn(cell, "vanilla_fwbw")
    return found


def _layers(cell: str) -> dict[str, Callable[[Tensor], Tensor]]:
    """Return torch.nn's layers as functions of x (B, L, H D): their maps from the input count, so that they do more."""
    if cell not in LAYERS:
        return {}
    torch.manual_seed(0)
    narrow = [LAYERS[cell](WIDTH, WIDTH, batch_first=True) for _ in range(HEADS)]
    wide = LAYERS[cell](HEADS * WIDTH, HEADS * WIDTH, batch_first=True)
    return {
        LAYER: lambda x: torch.cat(
            [layer(part)[0] for layer, part in zip(narrow, x.split(WIDTH, -1), strict=True)], -1
        ),
        "torch.nn, one of all": lambda x: wide(x)[0],
    }


def _floor(cell: str, products: int) -> float:
    """Return the seconds for the recurrent products at the rate of large ones: one forward, two more backward."""
    return products * 2 * BATCH * LENGTH * HEADS * GATES[cell] * WIDTH**2 / gemm_rate()


def _draw(cell: str) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Return the recurrence's tensors, a layer's input, and a gradient of the output."""
    generator = torch.Generator().manual_seed(0)
    drawn = inputs.cell(generator, (BATCH, LENGTH, HEADS, WIDTH), GATES[cell])
    x, dy = (inputs.normal(generator, BATCH, LENGTH, HEADS * WIDTH) for _ in range(2))
    return drawn, x, dy


def _gradient(run: Callable[..., Tensor], tensors: dict[str, Tensor], dy: Tensor) -> Call:
    leaves = {name: t.clone().requires_grad_() for name, t in tensors.items()}

    def call() -> object:
        y = run(**leaves)
        return torch.autograd.grad(y, list(leaves.values()), dy.view(y.shape))

    return call


def _backward_too(layer: Callable[[Tensor], Tensor], x: Tensor, dy: Tensor) -> Call:
    def call() -> None:
        layer(x.clone().requires_grad_()).backward(dy)

    return call


@pytest.mark.parametrize("cell", GATES)
def test_forward(cell: str, bench_out: Path | None) -> None:
    drawn, x, _ = _draw(cell)
    runs = _recurrences(cell)
    with torch.no_grad():
        ours = runs["scanweave"](**drawn)
        for name, run in runs.items():
            torch.testing.assert_close(run(**drawn), ours, rtol=1e-4, atol=1e-4, msg=name)
        calls: dict[str, Call] = {name: partial(run, **drawn) for name, run in runs.items()}
        calls |= {name: partial(layer, x) for name, layer in _layers(cell).items()}
        found = compare(f"{cell} forward, {TITLE}", calls, floor_seconds=_floor(cell, 1), out=bench_out, rounds=7)
        if cell == "slstm":
            slow = {"scanweave": calls["scanweave"], "xlstm vanilla": partial(peers.xlstm_slstm(), **drawn)}
            compare(
                f"{cell} forward beside xlstm, {TITLE}",
                slow,
                floor_seconds=_floor(cell, 1),
                out=bench_out,
                rounds=XLSTM_ROUNDS,
            )
    assert found["flashrnn vanilla"] >= 3 * found["scanweave"]


@pytest.mark.parametrize("cell", GATES)
def test_forward_and_backward(cell: str, bench_out: Path | None) -> None:
    drawn, x, dy = _draw(cell)
    calls = {name: _gradient(run, drawn, dy) for name, run in _recurrences(cell).items()}
    calls |= {name: _backward_too(layer, x, dy) for name, layer in _layers(cell).items()}
    title = f"{cell} forward + backward"
    found = compare(f"{title}, {TITLE}", calls, floor_seconds=_floor(cell, 3), out=bench_out, rounds=3)
    if cell == "slstm":
        slow = {"scanweave": calls["scanweave"], "xlstm vanilla": _gradient(peers.xlstm_slstm(), drawn, dy)}
        compare(
            f"{title} beside xlstm, {TITLE}",
            slow,
            floor_seconds=_floor(cell, 3),
            out=bench_out,
            rounds=XLSTM_ROUNDS,
        )
    assert found["flashrnn vanilla"] >= 3 * found["scanweave"]
