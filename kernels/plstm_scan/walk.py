"""The four ways to walk a grid, as flips of its axes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from ..dispatch import Kernel, Reason

NODES = 7  # tensors on nodes; then come the states of the edges into the first column and the first row


class Call(NamedTuple):
    """The arguments that a form of the op is called with, forward and backward."""

    nodes: tuple[Tensor, ...]
    """q, k, v, source, transition, mark and direct, (B, X, Y, H, ...)."""
    entering: tuple[Tensor | None, Tensor | None]
    """States of the edges where the walk begins, (B, X, H, K, V) and (B, Y, H, K, V)."""
    flips: tuple[bool, bool]
    """Whether rows are walked upwards, and columns to the left."""
    scale: float

    @classmethod
    def of(cls, arguments: Sequence[Any]) -> Call:
        """Sort the op's arguments."""
        return cls(tuple(arguments[:NODES]), tuple(arguments[7:9]), tuple(arguments[9:11]), arguments[11])


def as_kernel(form: Any, refuses: Callable[[Tensor], Reason]) -> Kernel:
    """Return a form as the dispatcher keeps it.

    Args:
        form: Has ``forward(call, save)``, which returns o, the states that leave along rows and along columns, and with
            ``save`` those into bands; and ``backward(call, before, into)``, which returns the gradients of the nodes
            and of the entering states, empty where one is None.
        refuses: As in :class:`..dispatch.Kernel`.
    """

    def forward(*arguments: Any) -> tuple[Tensor, ...]:
        return form.forward(Call.of(arguments), arguments[12])

    def backward(*arguments: Any) -> tuple[Tensor, ...]:
        return form.backward(Call.of(arguments), arguments[12], arguments[13:])

    return Kernel(forward, backward, refuses)


def _flip(x: Tensor | None, axes: list[int]) -> Tensor | None:
    return x.flip(axes) if x is not None and axes else x


def walked(run: Callable[..., tuple[Tensor, Tensor, Tensor]], call: Call) -> tuple[Tensor, ...]:
    """Run a form that walks right and down on a grid that is walked left, or up, or both.

    Args:
        run: A function of the tensors on nodes, the states that enter and the scale.
        call: Its arguments.

    Returns:
        What ``run`` returns, in the order of the grid.
    """
    axes = [axis for axis, flipped in zip((1, 2), call.flips, strict=True) if flipped]
    along, across = ([1] if flipped else [] for flipped in call.flips)
    places = [axes] * NODES + [along, across]
    results = run(
        *(_flip(x, place) for x, place in zip((*call.nodes, *call.entering), places, strict=True)), call.scale
    )
    return tuple(x.flip(place) if place else x for x, place in zip(results, (axes, along, across), strict=True))
