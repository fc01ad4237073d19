"""What a call costs before it computes: small models take thousands of them."""

from __future__ import annotations

import timeit
from collections.abc import Callable

import pytest
import torch

from scanweave.kernels import linear_scan

pytestmark = pytest.mark.bench

# Beyond plain PyTorch ops with as many outputs, without a gradient.
BOUND_MICROSECONDS = 40.0


def _microseconds(calls: dict[str, Callable[[], object]], number: int = 50, rounds: int = 300) -> dict[str, float]:
    """Return each call's least time over many short rounds: what others do on the machine only adds to it."""
    found = dict.fromkeys(calls, float("inf"))
    for _ in range(rounds):
        for name, call in calls.items():
            found[name] = min(found[name], timeit.timeit(call, number=number) / number * 1e6)
    return found


def test_linear_scan() -> None:
    a, b, state = torch.rand(1, 4, 8), torch.randn(1, 4, 8), torch.randn(1, 8)
    with torch.no_grad():
        plain = _microseconds(
            {"scan": lambda: linear_scan(a, b), "plain": lambda: (torch.mul(a, b), torch.mul(state, state))}
        )
    x, z, dy = a.clone().requires_grad_(), b.clone().requires_grad_(), torch.ones_like(b)
    trained = _microseconds(
        {
            "scan": lambda: torch.autograd.grad(linear_scan(x, z)[0], (x, z), dy),
            "plain": lambda: torch.autograd.grad(torch.mul(x, z), (x, z), dy),
        }
    )
    for title, times in (("without gradient", plain), ("forward + backward", trained)):
        print(f"\nlinear_scan at (1, 4, 8), {title}: {times['scan']:.1f} us; a product: {times['plain']:.1f} us")
    assert plain["scan"] - plain["plain"] <= BOUND_MICROSECONDS
