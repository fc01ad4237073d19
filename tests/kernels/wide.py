"""Calls of ops at the widths that models have, for :mod:`.aot`: the table's rows are narrow, to be quick."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from scanweave.kernels import cell_scan, delta_rule, dplr_scan, gated_linear_attention, ttt_linear
from scanweave.kernels.cell_scan.cells import find_cell

from .contract import draw_reset

LENGTH = 130

Call = Callable[..., tuple[Tensor, Any]]


def calls(width: int, dtype: torch.dtype) -> Iterator[tuple[str, Call]]:
    """Yield each call's name and the call, on zeros that need gradients, for a head of that width."""

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=dtype, requires_grad=True)

    q, k, v, more = (zeros(1, LENGTH, 1, width) for _ in range(4))
    gate, row, square = zeros(1, LENGTH, 1), zeros(1, width), zeros(1, width, width)
    yield "gated_linear_attention", partial(gated_linear_attention, q, k, v, gate)
    yield "gated_linear_attention-rows", partial(gated_linear_attention, q, k, v, more)
    yield "gated_linear_attention-bonus", partial(gated_linear_attention, q, k, v, more, bonus=row)
    yield "delta_rule", partial(delta_rule, q, k, v, gate, gate)
    yield "dplr_scan", partial(dplr_scan, q, k, v, more, more, more)
    yield "ttt_linear", partial(ttt_linear, q, k, v, gate, square, row, row, row)
    for cell in ("elman", "lstm", "gru", "slstm", "slstm_exp"):
        gates = len(find_cell(cell).gates)
        wx, R, bias = zeros(1, LENGTH, 1, gates, width), zeros(1, gates, width, width), zeros(1, gates, width)
        yield f"cell_scan-{cell}", partial(cell_scan, wx, R, bias, cell=cell)


def run(call: Call) -> None:
    """Run a call, with a reset, and its backward pass."""
    y, final = call(reset=draw_reset(LENGTH, 1), backend="triton")
    parts = final if isinstance(final, tuple) else (final,)
    sum(x.sum() for x in (y, *parts) if x.requires_grad).backward()
