"""linear_scan beside mambapy's scan and torch's associative_scan, and beside the memory's bandwidth."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from scanweave.kernels import linear_scan

from .compare import compare, peak_mebibytes
from .floor import copy_bandwidth

pytestmark = pytest.mark.bench

IN_CACHE, BEYOND = (4, 1024, 256), (8, 4096, 512)
Scan = Callable[[Tensor, Tensor], Tensor]


def _ours(a: Tensor, b: Tensor) -> Tensor:
    return linear_scan(a, b)[0]


def _chunked(a: Tensor, b: Tensor) -> Tensor:
    return linear_scan(a, b, backend="chunked")[0]


def _mambapy() -> Scan:
    pscan = pytest.importorskip("mambapy.pscan").pscan
    # It takes (B, L, D, N): N = 1 leaves the recurrence as it is.
    return lambda a, b: pscan(a.unsqueeze(-1), b.unsqueeze(-1)).squeeze(-1)


def _associative_scan() -> Scan:
    from torch._higher_order_ops import associative_scan

    def merge(x: tuple[Tensor, Tensor], y: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return y[0] * x[0], y[0] * x[1] + y[1]

    def scan(a: Tensor, b: Tensor) -> Tensor:
        return associative_scan(merge, (a, b), 1, combine_mode="generic")[1]

    return torch.compile(scan, fullgraph=True)


def _gradient(scan: Scan, a: Tensor, b: Tensor, dy: Tensor) -> Callable[[], object]:
    leaves = a.clone().requires_grad_(), b.clone().requires_grad_()
    return lambda: torch.autograd.grad(scan(*leaves), leaves, dy)


def _draw(shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(shape, generator=generator) * 0.5 + 0.5
    return a, torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


def _floor(shape: tuple[int, ...], streams: int) -> float:
    """Return the seconds to move that many tensors of the shape through memory."""
    size = streams * 4 * math.prod(shape)
    return size / copy_bandwidth(size)


@torch.no_grad()
def test_forward(bench_out: Path | None) -> None:
    a, b, _ = _draw(IN_CACHE)
    scans = {"scanweave": _ours, "chunked": _chunked, "mambapy": _mambapy(), "associative_scan": _associative_scan()}
    for name, scan in scans.items():
        torch.testing.assert_close(scan(a, b), _ours(a, b), rtol=1e-4, atol=1e-4, msg=name)
    calls = {name: lambda scan=scan: scan(a, b) for name, scan in scans.items()}
    found = compare("linear_scan forward, B 4 L 1024 C 256", calls, floor_seconds=_floor(IN_CACHE, 3), out=bench_out)
    assert found["scanweave"] == min(found.values())


def test_forward_and_backward(bench_out: Path | None) -> None:
    a, b, dy = _draw(IN_CACHE)
    scans = {"scanweave": _ours, "chunked": _chunked, "mambapy": _mambapy()}
    calls = {name: _gradient(scan, a, b, dy) for name, scan in scans.items()}
    floor = _floor(IN_CACHE, 8)  # forward: a, b, y; backward: a, y, dy, da, db
    found = compare("linear_scan forward + backward, B 4 L 1024 C 256", calls, floor_seconds=floor, out=bench_out)
    assert found["scanweave"] == min(found.values())


@torch.no_grad()
def test_beyond_the_cache(bench_out: Path | None) -> None:
    a, b, _ = _draw(BEYOND)
    # A product moves the same bytes, and pays as much for fresh memory.
    calls = {"scanweave": lambda: _ours(a, b), "a * b": lambda: a * b}
    found = compare("linear_scan forward, B 8 L 4096 C 512", calls, floor_seconds=_floor(BEYOND, 3), out=bench_out)
    assert found["scanweave"] <= 2 * found["a * b"]


@torch.no_grad()
def test_a_decay_constant_over_time(bench_out: Path | None) -> None:
    """S5 and LRU: complex, one decay per channel, which stays in cache."""
    shape = (4, 1024, 128)
    radius, angle = torch.linspace(0.9, 0.999, shape[2]), torch.linspace(0, 3, shape[2])
    a, b = torch.polar(radius, angle), torch.randn(shape, dtype=torch.complex64)
    whole = a.expand(shape).contiguous()
    torch.testing.assert_close(_ours(a, b), _ours(whole, b))
    calls = {"constant": lambda: _ours(a, b), "written out": lambda: _ours(whole, b)}
    floor = _floor((*shape, 2), 2)
    compare("linear_scan complex, B 4 L 1024 C 128", calls, floor_seconds=floor, out=bench_out)


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_peak_memory() -> None:
    setup = """
import torch
from scanweave.kernels import linear_scan
from mambapy.pscan import pscan
a, b = torch.rand(4, 2048, 512).requires_grad_(), torch.randn(4, 2048, 512).requires_grad_()
ours = lambda a, b: linear_scan(a, b)[0]
theirs = lambda a, b: pscan(a.unsqueeze(-1), b.unsqueeze(-1)).squeeze(-1)
call = {call}
call(a[:, :2], b[:, :2]).sum().backward()
a.grad = b.grad = None
"""
    pytest.importorskip("mambapy")
    ours, theirs = (
        peak_mebibytes(setup.replace("{call}", call), "call(a, b).sum().backward()") for call in ("ours", "theirs")
    )
    print(f"\nlinear_scan forward + backward, peak memory: scanweave {ours:.0f} MiB, mambapy {theirs:.0f} MiB")
    assert ours <= theirs
