"""newton_scan beyond the op contract: Newton's method itself, where it needs many iterations and where it gives up."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from scanweave.kernels import ConvergenceError, dispatch, newton_scan
from scanweave.kernels.newton_scan.cells import CELLS, find_cell
from scanweave.kernels.newton_scan.chunked import block_scan, solve

from .contract import assert_close, normal

every_cell = pytest.mark.parametrize("cell", list(CELLS))


def _draw(cell: str, length: int, scale: float, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Return wx and recurrent weights of size ``scale``."""
    generator, found = torch.Generator().manual_seed(0), find_cell(cell)
    wx = normal(generator, 2, length, len(found.gates), 5)
    return wx.to(dtype), (scale * normal(generator, len(found.weights), 5)).to(dtype)


def _iterations(cell: str, wx: Tensor, r: Tensor) -> int:
    initial = wx.new_zeros(2, len(find_cell(cell).states), 5)
    return solve(find_cell(cell), wx, r, initial, None, 2e-6, 1000)[1]


@every_cell
@pytest.mark.parametrize("length", [1, 2, 50, 513, 2000])
def test_solves_what_the_loop_runs(cell: str, length: int) -> None:
    wx, r = _draw(cell, length, 0.5)
    wanted, state = newton_scan(wx, r, cell=cell, backend="reference")
    y, found = newton_scan(wx, r, cell=cell, backend="chunked")
    assert_close(y, wanted, 1e-5, "y")
    for one, other in zip(found, state, strict=True):
        assert_close(one, other, 1e-5, "final_state")
    assert _iterations(cell, wx, r) <= min(length, 6)


@every_cell
def test_large_weights_need_more_iterations(cell: str) -> None:
    wx, r = _draw(cell, 100, 2.0)
    wanted, _ = newton_scan(wx.double(), r.double(), cell=cell, backend="reference")
    y, _ = newton_scan(wx, r, cell=cell, backend="chunked")
    assert_close(y, wanted, 1e-5, "y")
    assert _iterations(cell, wx, r) > _iterations(cell, wx, r / 4)


@every_cell
def test_says_where_it_gives_up_and_needs_no_more_iterations_than_steps(cell: str) -> None:
    # Such weights amplify float32's rounding until no two forms agree.
    wx, r = _draw(cell, 60, 20.0, torch.float64)
    with pytest.raises(ConvergenceError, match=rf"the {cell} cell's .* off by .* after 3 iterations.*raise max_iter.*"):
        newton_scan(wx, r, cell=cell, backend="chunked", max_iterations=3)
    wanted, _ = newton_scan(wx, r, cell=cell, backend="reference")
    for backend, most in (("chunked", 60), ("cpu", 1)):
        y, _ = newton_scan(wx, r, cell=cell, backend=backend, max_iterations=most)
        assert_close(y, wanted, 1e-8, f"y of {backend}")


@every_cell
def test_a_coarse_tolerance_takes_fewer_iterations_and_keeps_its_word(cell: str) -> None:
    wx, r = _draw(cell, 80, 2.0, torch.float64)
    initial = wx.new_zeros(2, len(find_cell(cell).states), 5)
    _, coarse, residual = solve(find_cell(cell), wx, r, initial, None, 1e-2, 100)
    _, fine, _ = solve(find_cell(cell), wx, r, initial, None, 1e-14, 100)
    assert residual <= 1e-2
    assert coarse < fine


@every_cell
def test_a_sequence_does_not_depend_on_the_others_in_its_batch(cell: str) -> None:
    wx, r = _draw(cell, 40, 0.5)
    hard = torch.cat([wx, 8 * wx], 0)
    y, _ = newton_scan(hard, r, cell=cell, backend="chunked")
    alone, _ = newton_scan(wx, r, cell=cell, backend="chunked")
    assert torch.equal(y[:2], alone)


@every_cell
@pytest.mark.parametrize(("backend", "channels"), [("cpu", 37), ("triton", 35)])
def test_channels_fill_some_vectors_and_a_part_of_one(cell: str, backend: str, channels: int) -> None:
    device = "cuda" if backend == "triton" and torch.cuda.is_available() else "cpu"
    if reason := dispatch.served_by(device)["newton_scan"][1].get(backend, "it is not installed"):
        pytest.skip(reason)
    generator, found = torch.Generator().manual_seed(0), find_cell(cell)
    wx, r = normal(generator, 2, 4, 3, channels), normal(generator, len(found.weights), channels)
    dy, results = normal(generator, 2, 4, channels), []
    for name, dtype, place in (("reference", torch.float64, "cpu"), (backend, torch.float32, device)):
        leaves = [x.to(place, dtype).requires_grad_() for x in (wx, r)]
        y, _ = newton_scan(*leaves, cell=cell, backend=name)
        results.append([y, *torch.autograd.grad(y, leaves, dy.to(place, dtype))])
    for wanted, one in zip(*results, strict=True):
        assert_close(one.detach().cpu(), wanted.detach(), 1e-5, backend)


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("reverse", [False, True])
def test_block_scan_is_the_loop(size: int, reverse: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    for length in (1, 2, 3, 8, 29):
        a, b = normal(generator, 2, length, size, size, 4) / size, normal(generator, 2, length, size, 4)
        reset = torch.rand(2, length, generator=generator) < 0.2
        h, wanted = torch.zeros(2, size, 4, dtype=torch.float64), [torch.empty(0)] * length
        for t in reversed(range(length)) if reverse else range(length):
            h = b[:, t] + torch.einsum("bijc,bjc->bic", a[:, t], h * ~reset[:, t, None, None])
            wanted[t] = h
        assert_close(block_scan(a, b, reset, reverse=reverse), torch.stack(wanted, 1), 1e-12, "h")


@every_cell
def test_names_a_state_that_is_none(cell: str) -> None:
    wx, r = _draw(cell, 4, 0.5)
    with pytest.raises(TypeError, match=f"initial_state is a Tensor, expected a tuple of {cell}'s h"):
        newton_scan(wx, r, cell=cell, initial_state=wx[:, 0, 0])
    state = (torch.zeros(2, 4),) * len(find_cell(cell).states)
    with pytest.raises(ValueError, match=r"initial_state 'h' has shape \(2, 4\), expected \(B, C\)"):
        newton_scan(wx, r, cell=cell, initial_state=state)
