"""selective_scan beside mambapy, a compiled associative scan and a lean loop, and beside the rate of exponentials."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from scanweave.kernels import selective_scan

from .compare import compare, peak_mebibytes
from .floor import exp_rate

pytestmark = pytest.mark.bench

BATCH, LENGTH, CHANNELS, N = 4, 1024, 256, 16
TITLE = f"B {BATCH} L {LENGTH} C {CHANNELS} N {N}"
Scan = Callable[..., Tensor]


def _ours(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, dt_bias: Tensor) -> Tensor:
    return selective_scan(u, dt, A, B, C, D, z, dt_bias)[0]


def _chunked(*tensors: Tensor) -> Tensor:
    return selective_scan(*tensors, backend="chunked")[0]


def _around(states: Callable[[Tensor, Tensor], Tensor]) -> Scan:
    """Return Mamba's block core around a scan of (B, L, C, N), as mambapy and transformers write it."""

    def scan(u, dt, A, B, C, D, z, dt_bias):
        delta = F.softplus(dt + dt_bias)
        decay = torch.exp(delta.unsqueeze(-1) * A)
        h = states(decay, delta.unsqueeze(-1) * B.unsqueeze(2) * u.unsqueeze(-1))
        return ((h @ C.unsqueeze(-1)).squeeze(3) + D * u) * F.silu(z)

    return scan


def _mambapy() -> Scan:
    return _around(pytest.importorskip("mambapy.pscan").pscan)


def _associative_scan() -> Scan:
    from torch._higher_order_ops import associative_scan

    def merge(x: tuple[Tensor, Tensor], y: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return y[0] * x[0], y[0] * x[1] + y[1]

    def states(a: Tensor, b: Tensor) -> Tensor:
        return associative_scan(merge, (a, b), 1, combine_mode="generic")[1]

    return torch.compile(_around(states), fullgraph=True)


def _lean_loop(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, dt_bias: Tensor) -> Tensor:
    """Step through time with one state in memory; its backward pass takes ten times as long as the others'."""
    delta = F.softplus(dt + dt_bias)
    x, h, outputs = delta * u, torch.zeros(u.shape[0], *A.shape), []
    for x_t, delta_t, B_t, C_t in zip(x.unbind(1), delta.unbind(1), B.unbind(1), C.unbind(1), strict=True):
        h = torch.exp(delta_t.unsqueeze(-1) * A) * h + x_t.unsqueeze(-1) * B_t.unsqueeze(1)
        outputs.append((h @ C_t.unsqueeze(-1)).squeeze(-1))
    return (torch.stack(outputs, 1) + D * u) * F.silu(z)


def _draw() -> tuple[Tensor, ...]:
    """Return inputs as Mamba's initial values make them."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    sequence = (BATCH, LENGTH, CHANNELS)
    step = torch.exp(torch.rand(CHANNELS, generator=generator) * math.log(100) + math.log(1e-3))
    return (
        normal(*sequence),
        0.1 * normal(*sequence),
        -torch.arange(1.0, N + 1).repeat(CHANNELS, 1),
        normal(BATCH, LENGTH, N),
        normal(BATCH, LENGTH, N),
        torch.ones(CHANNELS),
        normal(*sequence),
        step + torch.log(-torch.expm1(-step)),
    )


def _floor() -> float:
    """Return the seconds for one exponential per state and step."""
    return BATCH * LENGTH * CHANNELS * N / exp_rate()


@torch.no_grad()
def test_forward(bench_out: Path | None) -> None:
    tensors = _draw()
    scans = {
        "scanweave": _ours,
        "chunked": _chunked,
        "mambapy": _mambapy(),
        "associative_scan": _associative_scan(),
        "lean loop": _lean_loop,
    }
    for name, scan in scans.items():
        torch.testing.assert_close(scan(*tensors), _ours(*tensors), rtol=1e-4, atol=1e-4, msg=name)
    calls = {name: lambda scan=scan: scan(*tensors) for name, scan in scans.items()}
    found = compare(f"selective_scan forward, {TITLE}", calls, floor_seconds=_floor(), out=bench_out, rounds=9)
    assert min(found[name] for name in ("mambapy", "associative_scan", "lean loop")) >= 10 * found["scanweave"]


def _gradient(scan: Scan, tensors: tuple[Tensor, ...], dy: Tensor) -> Callable[[], object]:
    leaves = tuple(t.clone().requires_grad_() for t in tensors)
    return lambda: torch.autograd.grad(scan(*leaves), leaves, dy)


def test_forward_and_backward(bench_out: Path | None) -> None:
    tensors = _draw()
    dy = torch.randn(BATCH, LENGTH, CHANNELS, generator=torch.Generator().manual_seed(1))
    scans = {
        "scanweave": _ours,
        "chunked": _chunked,
        "mambapy": _mambapy(),
        "associative_scan": _associative_scan(),
    }
    calls = {name: _gradient(scan, tensors, dy) for name, scan in scans.items()}
    title = f"selective_scan forward + backward, {TITLE}"
    found = compare(title, calls, floor_seconds=_floor(), out=bench_out, rounds=5)
    assert min(found[name] for name in ("mambapy", "associative_scan")) >= 10 * found["scanweave"]


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_peak_memory() -> None:
    pytest.importorskip("mambapy")
    setup = """
import torch
from tests.benchmarks import test_selective_scan as bench
call = {call}
tensors = [t.requires_grad_() for t in bench._draw()]
u, dt, A, B, C, D, z, bias = tensors
call(u[:, :2], dt[:, :2], A, B[:, :2], C[:, :2], D, z[:, :2], bias).sum().backward()
for t in tensors:
    t.grad = None
"""
    ours, chunked, theirs = (
        peak_mebibytes(setup.replace("{call}", call), "call(*tensors).sum().backward()")
        for call in ("bench._ours", "bench._chunked", "bench._mambapy()")
    )
    print(f"\nselective_scan forward + backward, {TITLE}, peak memory in MiB:", end=" ")
    print(f"scanweave {ours:.0f}, chunked {chunked:.0f}, mambapy {theirs:.0f}")
    assert ours <= theirs / 5
