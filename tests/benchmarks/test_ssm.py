"""The structured state spaces from 1k to 64k steps: S4D by FFT, by the recurrence and beside S5, and the transforms."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from scanweave.core import create_mixer
from scanweave.core.ssm.convolution import fast_length, run_system
from scanweave.core.ssm.layer import DiagonalStateSpace
from scanweave.core.ssm.system import System, deinterleave
from scanweave.kernels import linear_scan

from .compare import compare
from .floor import median_seconds

pytestmark = pytest.mark.bench

BATCH, CHANNELS, STATES = 4, 64, 64
LENGTHS = 1024, 4096, 16384, 65536
RECURRENCE_TO = 4096  # beyond it all states of the recurrence take gigabytes
CAUCHY_TO = 16384  # beyond it a backward pass takes minutes
ROUNDS = {1024: 9, 4096: 5, 16384: 3, 65536: 1}


def _by_fft(system: System, u: Tensor) -> Tensor:
    return run_system(system, u, u.new_zeros(BATCH, CHANNELS, STATES), None)[0]


def _by_recurrence(system: System, u: Tensor) -> Tensor:
    """Hold all states of ``x_t = a x_{t-1} + B u_t`` at once."""
    B, C = (deinterleave(part).to(torch.complex64) for part in (system.B, system.C))
    decay = deinterleave(system.advance(_ones(system), 1)).to(B.dtype)
    x, _ = linear_scan(decay, u.unsqueeze(-1) * B)
    return (x * C.conj()).sum(-1).real


def _ones(system: System) -> Tensor:
    """Return the complex number 1 for each state."""
    return torch.tensor([1.0, 0.0], dtype=system.B.dtype).repeat(CHANNELS, STATES // 2)


def _floor(length: int, passes: int) -> float:
    """Return the seconds of the transforms alone: there and back for each pass, and the kernels' too."""
    size = fast_length(2 * length - 1)
    u, kernel = torch.randn(CHANNELS, BATCH, length), torch.randn(CHANNELS, length)

    def transforms() -> None:
        torch.fft.irfft(torch.fft.rfft(u, size), size)
        torch.fft.rfft(kernel, size)

    return passes * median_seconds(transforms, rounds=ROUNDS[length])


def _candidates(length: int) -> dict[str, Callable[[Tensor], Tensor]]:
    torch.manual_seed(0)
    ssm = DiagonalStateSpace("S4D", CHANNELS, STATES, "lin", "zoh", 1e-3, 1e-1)
    s4d, s4, s5 = (create_mixer(name, CHANNELS) for name in ("s4d", "s4", "s5"))
    cauchy = create_mixer("s4", CHANNELS, kernel="cauchy")
    found = {"S4D by FFT": lambda u: _by_fft(ssm.system(), u)}
    if length <= RECURRENCE_TO:
        found["S4D by linear_scan"] = lambda u: _by_recurrence(ssm.system(), u)
    if length <= CAUCHY_TO:
        found["mixer s4, Cauchy sums"] = lambda u: cauchy(u)[0]
    return found | {"mixer s4d": lambda u: s4d(u)[0], "mixer s4": lambda u: s4(u)[0], "mixer s5": lambda u: s5(u)[0]}


@pytest.mark.parametrize("length", LENGTHS)
@torch.no_grad()
def test_forward(length: int, bench_out: Path | None) -> None:
    u, candidates = torch.randn(BATCH, length, CHANNELS), _candidates(length)
    if length <= RECURRENCE_TO:
        by_fft, by_recurrence = (candidates[name](u) for name in list(candidates)[:2])
        torch.testing.assert_close(by_fft, by_recurrence, rtol=1e-3, atol=1e-4 * float(by_fft.abs().max()))
    calls = {name: lambda run=run: run(u) for name, run in candidates.items()}
    found = _compare("forward", length, calls, 1, bench_out)
    assert _fft_wins(found)


@pytest.mark.parametrize("length", LENGTHS)
def test_forward_and_backward(length: int, bench_out: Path | None) -> None:
    u = torch.randn(BATCH, length, CHANNELS, requires_grad=True)
    calls = {name: lambda run=run: run(u).sum().backward() for name, run in _candidates(length).items()}
    found = _compare("forward + backward", length, calls, 3, bench_out)
    assert _fft_wins(found)


def _compare(
    what: str, length: int, calls: dict[str, Callable[[], object]], passes: int, out: Path | None
) -> dict[str, float]:
    title = f"S4D {what}, B {BATCH} L {length} C {CHANNELS} N {STATES}, floor: transforms"
    return compare(title, calls, floor_seconds=_floor(length, passes), out=out, rounds=ROUNDS[length])


def _fft_wins(found: dict[str, float]) -> bool:
    return found["S4D by FFT"] < found.get("S4D by linear_scan", float("inf"))
