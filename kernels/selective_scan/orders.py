"""Groups and their orders for the forms of selective_scan that know only time: gathered before, laid back after."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..checks import has_values


def check_orders(orders: Tensor) -> None:
    """Refuse an order that does not visit each place once.

    Args:
        orders: (G, L) int64.

    Raises:
        ValueError: A row is no permutation of 0 to L - 1.
    """
    places = torch.arange(orders.shape[1], device=orders.device)
    for group, (order, visited) in enumerate(zip(orders, orders.sort(1).values, strict=True)):
        if not torch.equal(visited, places):
            wrong = int((visited != places).nonzero()[0])
            raise ValueError(
                f"selective_scan: orders[{group}] does not visit place {wrong} once, expected each of 0 to "
                f"{len(order) - 1} once"
            )


def _gather(x: Tensor, orders: Tensor | None) -> Tensor:
    """Take (B, L, G, K) at the places that each group's order (G, L) names."""
    return x if orders is None else x.gather(1, orders.t()[None, :, :, None].expand(x.shape))


class _Reading:
    """How sequences (B, L, C) or (B, L, G, C / G) are laid out for a form that knows neither groups nor orders."""

    def __init__(self, groups: int, orders: Tensor | None) -> None:
        if orders is not None and has_values(orders):
            check_orders(orders)
        self.groups, self.orders = groups, orders
        self.inverse = None if orders is None else orders.argsort(1)

    def steps(self, x: Tensor | None) -> Tensor | None:
        """Return a sequence of all channels in the order of steps, (B, L, C)."""
        if x is None:
            return None
        return _gather(x.view(*x.shape[:2], self.groups, -1) if x.dim() == 3 else x, self.orders).flatten(2)

    def places(self, y: Tensor, shape: torch.Size) -> Tensor:
        """Lay what (B, L, C) the steps gave back on the places, in the given shape."""
        return _gather(y.unflatten(2, (self.groups, -1)), self.inverse).reshape(shape)


def forward_by_steps(run: Callable[..., tuple[Tensor, ...]]) -> Callable[..., tuple[Tensor, ...]]:
    """Give a forward pass over (B, L, C) the sequences of groups, and their orders."""

    def forward(
        u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
        dt_bias: Tensor | None, initial_state: Tensor | None, reset: Tensor | None, orders: Tensor | None,
        *options: Any,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        if orders is None and u.dim() == 3:
            return run(u, dt, A, B, C, D, z, dt_bias, initial_state, reset, *options)
        by = _Reading(B.shape[2], orders)
        B, C = _gather(B, orders), _gather(C, orders)
        y, *rest = run(by.steps(u), by.steps(dt), A, B, C, D, by.steps(z), dt_bias, initial_state, reset, *options)
        return by.places(y, u.shape), *rest

    return forward


def backward_by_steps(run: Callable[..., tuple[Tensor, ...]]) -> Callable[..., tuple[Tensor, ...]]:
    """Give a backward pass over (B, L, C) the sequences of groups, and their orders."""

    def backward(
        u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
        dt_bias: Tensor | None, initial_state: Tensor | None, reset: Tensor | None, orders: Tensor | None,
        dt_softplus: bool, signed: bool, before: Tensor, dy: Tensor | None, dfinal: Tensor | None,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        options = (dt_softplus, signed, before)
        if orders is None and u.dim() == 3:
            return run(u, dt, A, B, C, D, z, dt_bias, initial_state, reset, *options, dy, dfinal)
        by = _Reading(B.shape[2], orders)
        found = run(
            by.steps(u), by.steps(dt), A, _gather(B, orders), _gather(C, orders), D, by.steps(z), dt_bias,
            initial_state, reset, *options, by.steps(dy), dfinal,
        )  # fmt: skip
        du, ddt, dA, dB, dC, dD, dz, *rest = found
        du, ddt, dz = (g if x is None else by.places(g, x.shape) for g, x in ((du, u), (ddt, dt), (dz, z)))
        return du, ddt, dA, _gather(dB, by.inverse), _gather(dC, by.inverse), dD, dz, *rest

    return backward
