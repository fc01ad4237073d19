"""Registers an op with a matrix state: what the three of them tell the dispatcher in the same words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from ..library import define_op, gradients_of
from . import fake_gradients, fake_outputs
from .chunks import STEPS


def define_matrix_op(
    name: str, tensors: str, reference: Callable[..., tuple[Tensor, Tensor]], batched: Sequence[int]
) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """Register an op on some tensors, an initial state, a reset and a scale, and return what calls it.

    Args:
        name: The op's name.
        tensors: Its tensors as a schema has them, q, k and v first; their gradients come in this order, the initial
            state's last.
        reference: The op's definition, which a gradient of the gradient differentiates.
        batched: As in :func:`..library.define_op`.

    Returns:
        The op, called with the tensors, the initial state, the reset, the scale, ``False`` and the backend's name; it
        returns o, the last state, and a tensor that only the backward pass reads.
    """
    count = tensors.count(",") + 1
    arguments = f"{tensors}, Tensor? initial_state, Tensor? reset, float scale, "
    whole = count + 3

    def fake(q: Tensor, k: Tensor, v: Tensor, *others: Any) -> tuple[Tensor, ...]:
        return fake_outputs(q, v.shape[-1], STEPS[others[-1]], others[-2])

    def twice(*saved: Any) -> tuple[Tensor | None, ...]:
        _, do, dfinal = saved[whole:]
        return gradients_of(reference, saved[:whole], (do, dfinal))[: count + 1]

    op: Any = define_op(
        name,
        schema=f"({arguments}bool save, str backend) -> (Tensor, Tensor, Tensor)",
        backward_schema=(
            f"({arguments}Tensor before, Tensor? do, Tensor? dfinal, str backend) -> "
            f"({', '.join(['Tensor'] * (count + 1))})"
        ),
        fake=fake,
        fake_backward=lambda *saved: fake_gradients(saved[:count], saved[whole]),
        saved=lambda given, outputs: (*given[:whole], outputs[2]),
        differentiable=tuple(range(count + 1)),
        batched=batched,
        twice=twice,
        extras=1,
    )
    return op
