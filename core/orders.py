"""How positions are laid out as a sequence, and back; and mixing along more than one order."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor, nn

from .errors import ConfigError
from .registry import Mixer, State


class Order(ABC):
    """A bijection between the positions of a layout and the steps of a sequence.

    A subclass says by :meth:`index` which position each step visits; :meth:`permute` and :meth:`restore` follow.
    """

    @abstractmethod
    def index(self, shape: tuple[int, ...]) -> Tensor:
        """Return the row-major position that each step visits.

        Args:
            shape: The layout's extent: (L,) for a series, (H, W) for an image, (T, H, W) for a clip.

        Returns:
            (L,) int64, a permutation of 0..L-1, where L is the product of ``shape``.
        """

    def permute(self, x: Tensor) -> Tensor:
        """Lay out positions as a sequence.

        Args:
            x: (B, *shape, C).

        Returns:
            (B, L, C): step t is position ``index(shape)[t]``.
        """
        shape = tuple(x.shape[1:-1])
        return x.flatten(1, -2).index_select(1, self.index(shape).to(x.device))

    def restore(self, y: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Undo :meth:`permute`.

        Args:
            y: (B, L, C).
            shape: The layout's extent.

        Returns:
            (B, *shape, C).

        Raises:
            ValueError: The sequence's length is not the product of ``shape``.
        """
        inverse = torch.argsort(self.index(shape)).to(y.device)
        if len(inverse) != y.shape[1]:
            raise ValueError(
                f"{type(self).__name__}: y has length {y.shape[1]} on axis 1, expected {len(inverse)}: {shape}"
            )
        return y.index_select(1, inverse).unflatten(1, shape)


class Forward(Order):
    """First position first; on a grid, row by row."""

    def index(self, shape: tuple[int, ...]) -> Tensor:
        """Return 0..L-1."""
        return torch.arange(_size(shape))


class Reversed(Order):
    """Last position first."""

    def index(self, shape: tuple[int, ...]) -> Tensor:
        """Return L-1..0."""
        return torch.arange(_size(shape)).flip(0)


class Bidirectional(Mixer):
    """Mix along a series in both directions and join the two; not causal, so its state is empty.

    ``y = merge(forward_mixer(x), reverse(backward_mixer(reverse(x))))``

    Args:
        forward_mixer: Mixes from the first step to the last.
        backward_mixer: Mixes from the last step to the first; None shares the other's weights.
        merge: ``sum``, ``mean``, or ``concat`` with a linear map back to dim.

    Raises:
        ConfigError: The mixers differ in dim, or ``merge`` is unknown.

    Source:
        Schuster and Paliwal, Bidirectional recurrent neural networks (1997), section II; Zhu et al., Vision Mamba
        (2024), section 3.3.
    """

    def __init__(
        self,
        forward_mixer: Mixer,
        backward_mixer: Mixer | None = None,
        *,
        merge: Literal["sum", "mean", "concat"] = "sum",
    ) -> None:
        dim = forward_mixer.dim
        super().__init__(dim, state_shapes={})
        if backward_mixer is not None and backward_mixer.dim != dim:
            raise ConfigError(f"Bidirectional: backward_mixer has dim {backward_mixer.dim}, forward_mixer has {dim}")
        if merge not in ("sum", "mean", "concat"):
            raise ConfigError(f"Bidirectional: merge is {merge!r}, expected 'sum', 'mean' or 'concat'")
        self.merge = merge
        self.forward_mixer = forward_mixer
        self.backward_mixer = forward_mixer if backward_mixer is None else backward_mixer
        self.join = nn.Linear(2 * dim, dim) if merge == "concat" else None

    def mix(self, x: Tensor, state: State, reset: Tensor | None) -> tuple[Tensor, State]:
        """Mix whole sequences in both directions; a reset separates sequences in both."""
        there, _ = self.forward_mixer(x, None, reset)
        back, _ = self.backward_mixer(x.flip(1), None, None if reset is None else reverse_reset(reset))
        back = back.flip(1)
        if self.join is not None:
            return self.join(torch.cat([there, back], -1)), ()
        both = there + back
        return (both / 2 if self.merge == "mean" else both), ()

    def step(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Refuse: one step cannot see the steps to come.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError("Bidirectional: there is no step, each output needs the steps to come; use a causal mixer")


def reverse_reset(reset: Tensor) -> Tensor:
    """Return the resets of the reversed rows: a sequence's last step is the first there.

    Args:
        reset: (B, L) bool, True at the first step of each sequence.

    Returns:
        (B, L) bool over the flipped rows.
    """
    ends = torch.cat([reset[:, 1:], torch.ones_like(reset[:, :1])], 1)
    return ends.flip(1)


def _size(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()
