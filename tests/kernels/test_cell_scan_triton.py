"""cell_scan's Triton kernels beside the reference: every cell, held and read matrices, several blocks of a batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from scanweave.kernels import BackendError, cell_scan
from scanweave.kernels.cell_scan.cells import find_cell

from .contract import BACKWARD_BOUND, FORWARD_BOUND, assert_close, normal

pytest.importorskip("triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def _draw(cell: str, batch: int, length: int, heads: int, size: int) -> dict[str, Tensor]:
    generator, known = torch.Generator().manual_seed(0), find_cell(cell)
    gates = len(known.gates)
    state = normal(generator, len(known.states), batch, heads, size).abs()
    state[:, 0] = 0
    return {
        "wx": normal(generator, batch, length, heads, gates, size),
        "R": normal(generator, heads, gates, size, size) / size**0.5,
        "bias": normal(generator, heads, gates, size),
        "initial_state": state,
    }


def assert_agrees(
    cell: str, drawn: dict[str, Tensor], reset: Tensor | None, dtype: torch.dtype = torch.float32
) -> None:
    generator, results = torch.Generator().manual_seed(7), []
    _, batch, heads, size = drawn["initial_state"].shape
    weights = [normal(generator, *drawn["wx"].shape[:3], size)]
    weights += [normal(generator, batch, heads, size) for _ in find_cell(cell).states]
    for backend, kind in (("reference", torch.float64), ("triton", dtype)):
        leaves = {}
        for name, x in drawn.items():
            rounded = x.to(torch.float32 if name == "initial_state" else dtype)
            target = torch.float32 if name == "initial_state" and kind == dtype else kind
            leaves[name] = rounded.to(DEVICE, target).requires_grad_()
        given = {**leaves, "initial_state": leaves["initial_state"].unbind()}
        starts = None if reset is None else reset.to(DEVICE)
        y, final = cell_scan(**given, cell=cell, reset=starts, backend=backend)
        into = [w.to(DEVICE, x.dtype) for w, x in zip(weights, (y, *final), strict=True)]
        gradients = torch.autograd.grad((y, *final), list(leaves.values()), into)
        results.append([y.detach(), *(x.detach() for x in final), *gradients])
    wanted, found = results
    for i, (one, other) in enumerate(zip(found, wanted, strict=True)):
        bound = (FORWARD_BOUND if i <= len(final) else BACKWARD_BOUND)[dtype]
        assert_close(one, other, bound, f"{cell}, result {i}")


@pytest.mark.parametrize("cell", ["elman", "lstm", "gru", "slstm", "slstm_exp"])
def test_every_cell_agrees_with_the_reference(cell: str) -> None:
    """More batch entries than a program takes, columns that are masked, a fresh state and one in the middle."""
    drawn = _draw(cell, 18, 3, 2, 5)
    reset = torch.zeros(18, 3, dtype=torch.bool)
    reset[::2, 1] = reset[1, 0] = reset[17, 2] = True
    assert_agrees(cell, drawn, reset)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_a_matrix_too_wide_to_hold_is_read_at_each_step(cell: str) -> None:
    assert_agrees(cell, _draw(cell, 2, 3, 1, 72), None)


def test_half_precision_and_strides_of_the_gates() -> None:
    drawn = _draw("slstm", 2, 4, 2, 3)
    drawn["wx"] = drawn["wx"].transpose(1, 2).contiguous().transpose(1, 2)
    assert_agrees("slstm", drawn, None, torch.bfloat16)


def test_says_which_widths_it_serves() -> None:
    drawn = {name: x.float().to(DEVICE) for name, x in _draw("elman", 1, 1, 1, 257).items() if name in ("wx", "R")}
    with pytest.raises(BackendError, match="heads of at most 256 features, not of 257; 'chunked' serves any width"):
        cell_scan(**drawn, cell="elman", backend="triton")
