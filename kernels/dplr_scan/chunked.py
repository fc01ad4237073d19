"""dplr_scan in PyTorch ops alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..checks import check_log_decay
from ..library import gradients_of
from .chunks import STEPS
from .reference import dplr_scan_reference


def forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return o, the final state and, with ``save``, the state before each chunk."""
    *inputs, save = arguments
    if inputs[5] is not None and inputs[5].device.type == "cpu":
        check_log_decay("dplr_scan", inputs[5])
    o, final = dplr_scan_reference(*inputs)
    chunks = -(-o.shape[1] // STEPS["chunked"]) if save else 0
    return o, final.clone(), final.new_zeros(final.shape[0], chunks, *final.shape[1:])


def backward(*arguments: Any) -> tuple[Tensor, ...]:
    """Return the gradients of the tensors; empty where the argument is None."""
    inputs, (before, do, dfinal) = list(arguments[:-3]), arguments[-3:]
    if inputs[6] is None:
        inputs[6] = before.new_zeros(before.shape[0], *before.shape[2:])
    with torch.enable_grad():
        found = gradients_of(dplr_scan_reference, inputs, (do, dfinal))[: 6 + 1]
    grads = [
        before.new_empty(0) if x is None else torch.zeros_like(x) if g is None else g.detach()
        for x, g in zip(inputs, found)
    ]
    return tuple(g.contiguous() for g in grads)
