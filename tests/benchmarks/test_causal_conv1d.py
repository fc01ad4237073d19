"""causal_conv1d with SiLU beside PyTorch's convolutions followed by SiLU on the CPU, and beside a copy of its input."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from scanweave.kernels import causal_conv1d

from .compare import compare
from .floor import copy_bandwidth

pytestmark = pytest.mark.bench

TAPS = 4
SHAPES = ((4, 197, 768), (4, 1024, 256), (1, 16384, 256))
shaped = pytest.mark.parametrize("shape", SHAPES, ids=str)
Convolution = Callable[[Tensor, Tensor, Tensor], Tensor]


def _conv1d(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Convolve as Mamba's release does without its own kernel."""
    y = F.conv1d(x.transpose(1, 2), weight.unsqueeze(1), bias, padding=TAPS - 1, groups=x.shape[2])
    return F.silu(y[..., : x.shape[1]]).transpose(1, 2)


def _conv2d(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Convolve without a copy: (B, L, C) lies as conv2d's channels-last does."""
    image = F.pad(x, (0, 0, TAPS - 1, 0)).transpose(1, 2).unsqueeze(2)
    return F.silu(F.conv2d(image, weight[:, None, None], bias, groups=x.shape[2]).squeeze(2).transpose(1, 2))


CANDIDATES: dict[str, Convolution] = {
    "scanweave": lambda x, weight, bias: causal_conv1d(x, weight, bias, activation="silu")[0],
    "conv2d, silu": _conv2d,
    "conv1d, silu": _conv1d,
}


def _draw(shape: tuple[int, int, int]) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(*s, generator=generator) for s in (shape, (shape[2], TAPS), shape[2:]))  # type: ignore[return-value]


def _floor(x: Tensor, passes: int) -> float:
    """Return the seconds in which x is read and y is written, in each pass."""
    return passes * 2 * x.nbytes / copy_bandwidth(2 * x.nbytes)


@shaped
@torch.no_grad()
def test_forward(shape: tuple[int, int, int], bench_out: Path | None) -> None:
    tensors = _draw(shape)
    for name, convolve in CANDIDATES.items():
        torch.testing.assert_close(convolve(*tensors), _conv1d(*tensors), msg=name)
    calls = {name: lambda convolve=convolve: convolve(*tensors) for name, convolve in CANDIDATES.items()}
    compare(f"causal_conv1d and SiLU, forward, {shape}", calls, floor_seconds=_floor(tensors[0], 1), out=bench_out)


def _gradient(convolve: Convolution, tensors: tuple[Tensor, ...], dy: Tensor) -> Callable[[], object]:
    leaves = tuple(t.clone().requires_grad_() for t in tensors)
    return lambda: torch.autograd.grad(convolve(*leaves), leaves, dy)


@shaped
def test_forward_and_backward(shape: tuple[int, int, int], bench_out: Path | None) -> None:
    tensors = _draw(shape)
    dy = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    wanted = _gradient(_conv1d, tensors, dy)()
    for name, convolve in CANDIDATES.items():
        torch.testing.assert_close(_gradient(convolve, tensors, dy)(), wanted, rtol=1e-4, atol=1e-3, msg=name)
    calls = {name: _gradient(convolve, tensors, dy) for name, convolve in CANDIDATES.items()}
    title = f"causal_conv1d and SiLU, forward + backward, {shape}"
    compare(title, calls, floor_seconds=_floor(tensors[0], 3), out=bench_out)
