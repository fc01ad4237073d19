"""Gates of heads: shares between 0 and 1 that are read from the input."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .parameters import mark_undecayed, widen


class HeadGates(nn.Module):
    """Shares ``sigmoid(W x + b)``, some for each head, by name; single precision at least.

    Args:
        dim: Features of the input.
        biases: For each gate its name and b before training, (heads,). W starts small, so that the input says little
            at first.
        logarithms: Names of the gates whose logarithm is returned in their place.
        std: Standard deviation of W before training.
    """

    def __init__(
        self, dim: int, biases: Mapping[str, Tensor], logarithms: Collection[str] = (), std: float = 0.02
    ) -> None:
        super().__init__()
        self.names, self.logarithms = tuple(biases), frozenset(logarithms)
        bias = torch.cat([b.float() for b in biases.values()])
        self.weight = nn.Parameter(std * torch.randn(len(bias), dim))
        self.bias = mark_undecayed(nn.Parameter(bias))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return each gate of x (..., dim) by its name, (..., heads)."""
        # In half precision a sum with a bias of 4 would lose what the input adds.
        parts = (widen(F.linear(x, self.weight.to(x.dtype))) + widen(self.bias)).chunk(len(self.names), -1)
        return {
            name: F.logsigmoid(part) if name in self.logarithms else torch.sigmoid(part)
            for name, part in zip(self.names, parts, strict=True)
        }
