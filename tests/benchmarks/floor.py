"""What this machine could do at best: bytes and operations per second, measured in the same run as what they bound."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch


def median_seconds(call: Callable[[], object], rounds: int = 15) -> float:
    """Return the median time of a call, after two that warm it up."""
    call(), call()
    times = []
    for _ in range(rounds):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def copy_bandwidth(working_set: int) -> float:
    """Return bytes read and written per second by a copy between two buffers of ``working_set`` bytes together."""
    source = torch.ones(max(1, working_set // 8))
    target = torch.empty_like(source)
    return 2 * source.nbytes / median_seconds(lambda: target.copy_(source))


def gemm_rate(size: int = 1024, dtype: torch.dtype = torch.float32) -> float:
    """Return floating-point operations per second of a square matrix product."""
    a, b = torch.randn(size, size, dtype=dtype), torch.randn(size, size, dtype=dtype)
    out = torch.empty_like(a)
    return 2 * size**3 / median_seconds(lambda: torch.mm(a, b, out=out))


def exp_rate(numel: int = 1 << 16) -> float:
    """Return float32 exponentials per second, in cache."""
    x, out = torch.randn(numel), torch.empty(numel)
    return numel / median_seconds(lambda: torch.exp(x, out=out), rounds=100)
