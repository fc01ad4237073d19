"""pLSTM along a sequence is pLSTM on a grid of one row, and on a grid of one column."""

from __future__ import annotations

import pytest
import torch

from scanweave.kernels import plstm_scan_1d, plstm_scan_2d

from .contract import Tensors, assert_close
from .table import CASES


def _grid(t: Tensors, column: bool) -> Tensors:
    """Return what the line's tensors are on a grid of one row, or of one column; what crosses it is nothing."""
    other = torch.zeros_like(t["mark"])

    def pair(gate: torch.Tensor) -> torch.Tensor:
        return torch.stack([other, gate] if column else [gate, other], -1)

    kept = t["log_transition"].exp()
    places = {
        "source": pair(t["source"]),
        "transition": torch.diag_embed(pair(kept)),
        "mark": pair(t["mark"]),
    }
    nodes = {**{name: t[name] for name in ("q", "k", "v", "direct")}, **places}
    return {name: x.unsqueeze(2 if column else 1) for name, x in nodes.items()}


@pytest.mark.parametrize("column", [False, True])
def test_a_line_is_a_thin_grid(column: bool) -> None:
    t = CASES["plstm_scan_1d"].draw(37)
    names = [name for name in t if name != "initial_state"]
    leaves = {name: x.requires_grad_() for name, x in t.items()}
    o, final = plstm_scan_1d(**leaves)
    nothing = torch.zeros(2, 37, *final.shape[1:], dtype=torch.float64)
    entering = t["initial_state"].unsqueeze(1)
    state = (nothing, entering) if column else (entering, nothing)
    wanted, leaving = plstm_scan_2d(**_grid(leaves, column), initial_state=state)
    assert_close(o, wanted.squeeze(2 if column else 1), 1e-12, "o")
    assert_close(final, (leaving.columns if column else leaving.rows).squeeze(1), 1e-12, "state")
    weight = torch.randn(o.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    found = torch.autograd.grad((o * weight).sum(), [leaves[name] for name in names])
    expected = torch.autograd.grad((wanted * weight.view_as(wanted)).sum(), [leaves[name] for name in names])
    for name, a, b in zip(names, found, expected, strict=True):
        assert_close(a, b, 1e-11, name)
