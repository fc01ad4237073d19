"""What the tests of mixers against their papers share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from scanweave.core import Mixer, create_mixer


def draw(*shape: int) -> Tensor:
    """Draw the same standard normal numbers at each call, float64."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def make(name: str, dim: int, **arguments: object) -> Mixer:
    """Build a mixer in float64, the same at each call, whose parameters can be set in place."""
    torch.manual_seed(0)
    return create_mixer(name, dim, **arguments).double().requires_grad_(False)


def stir(mixer: Mixer) -> Mixer:
    """Move every parameter off its initial value, so that none drops out of a comparison."""
    for i, parameter in enumerate(mixer.parameters()):
        parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)))
    return mixer


def convolved(x: Tensor, conv: nn.Conv1d) -> Tensor:
    """Return ``silu(b + sum_j w[W-1-j] x_{t-j})``, one filter per channel, of x (L, C)."""
    padded = nn.functional.pad(x.T[None], (conv.kernel_size[0] - 1, 0))
    return nn.functional.silu(nn.functional.conv1d(padded, conv.weight, conv.bias, groups=len(conv.weight))[0].T)


def shifted(x: Tensor) -> Tensor:
    """Return each step's predecessor, zeros before the first, of x (L, C)."""
    return torch.cat([torch.zeros_like(x[:1]), x[:-1]])
