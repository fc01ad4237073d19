"""The four ways to walk a grid, as flips of its axes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

_NODES = 7  # tensors on nodes; then come the states of the edges into the first column and the first row


def _flip(x: Tensor | None, axes: list[int]) -> Tensor | None:
    return x.flip(axes) if x is not None and axes else x


def walked(
    run: Callable[..., tuple[Tensor, Tensor, Tensor]],
    arguments: Sequence[Tensor | None],
    flips: tuple[bool, bool],
    scale: float,
) -> tuple[Tensor, ...]:
    """Run a form that walks right and down on a grid that is walked left, or up, or both.

    Args:
        run: A function of the tensors on nodes (B, X, Y, H, ...), the states that enter and the scale.
        arguments: Those tensors; the states are those of the edges where the walk begins.
        flips: Whether rows are walked upwards, and columns to the left.
        scale: Factor of the output.

    Returns:
        What ``run`` returns, in the order of the grid.
    """
    axes = [axis for axis, flipped in zip((1, 2), flips, strict=True) if flipped]
    along, across = ([1] if flipped else [] for flipped in flips)
    places = [axes] * _NODES + [along, across]
    results = run(*(_flip(x, place) for x, place in zip(arguments, places, strict=True)), scale)
    return tuple(x.flip(place) if place else x for x, place in zip(results, (axes, along, across), strict=True))
