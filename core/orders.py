"""How positions are laid out as a sequence, and back; and mixing along more than one order."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from .errors import ConfigError, nearest
from .registry import Mixer, State

CROSS_SCAN = ("raster", "columns", "raster-reversed", "columns-reversed")
"""The four orders of VMamba's cross scan, for :func:`create_order`."""


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
        there, _ = _indices(self, tuple(x.shape[1:-1]), x.device)
        return x.flatten(1, -2).index_select(1, there)

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
        self._check_length(y, shape)
        _, back = _indices(self, shape, y.device)
        return y.index_select(1, back).unflatten(1, shape)

    def _check_length(self, y: Tensor, shape: tuple[int, ...]) -> None:
        if y.shape[1] != _size(shape):
            raise ValueError(
                f"{type(self).__name__}: y has length {y.shape[1]} on axis 1, expected {_size(shape)}: {shape}"
            )


def _indices(order: Order, shape: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return an order's index and its inverse, from a cache where no graph is being recorded."""
    return _compute(order, shape, device) if torch.compiler.is_compiling() else _cached(order, shape, device)


def _compute(order: Order, shape: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    there = order.index(shape).to(device)
    return there, torch.argsort(there)


@functools.lru_cache(maxsize=256)
def _cached(order: Order, shape: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    # A tensor made in inference mode could not be used in training later.
    with torch.inference_mode(False):
        return _compute(order, shape, device)


class Forward(Order):
    """First position first; on a grid, row by row; of a clip, frame after frame."""

    def index(self, shape: tuple[int, ...]) -> Tensor:
        """Return 0..L-1."""
        return torch.arange(_size(shape))

    def permute(self, x: Tensor) -> Tensor:
        """Flatten the axes of the layout."""
        return x.flatten(1, -2)

    def restore(self, y: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Undo :meth:`permute`."""
        self._check_length(y, shape)
        return y.unflatten(1, shape)


@dataclass(frozen=True)
class Axes(Order):
    """Row by row after the axes are turned round: column by column on a grid.

    Args:
        outer: Which axes come first, slowest first; the others follow in their order. None turns all of them round.
    """

    outer: tuple[int, ...] | None = None

    def _turned(self, axes: int) -> list[int]:
        if self.outer is None:
            return list(range(axes))[::-1]
        first = [axis % axes for axis in self.outer if -axes <= axis < axes]
        return [*first, *(axis for axis in range(axes) if axis not in first)]

    def index(self, shape: tuple[int, ...]) -> Tensor:
        """Return the positions with the axes turned round."""
        return torch.arange(_size(shape)).view(shape).permute(self._turned(len(shape))).flatten()

    def permute(self, x: Tensor) -> Tensor:
        """Turn the axes of the layout round and flatten them."""
        turned = self._turned(x.dim() - 2)
        return x.permute(0, *(axis + 1 for axis in turned), x.dim() - 1).flatten(1, -2)

    def restore(self, y: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Undo :meth:`permute`."""
        self._check_length(y, shape)
        turned = self._turned(len(shape))
        back = [turned.index(axis) + 1 for axis in range(len(shape))]
        return y.unflatten(1, [shape[axis] for axis in turned]).permute(0, *back, len(shape) + 1)


@dataclass(frozen=True)
class Reversed(Order):
    """Last position first.

    Args:
        of: The order that is walked backwards.
    """

    of: Order = field(default_factory=Forward)

    def index(self, shape: tuple[int, ...]) -> Tensor:
        """Return the other order's positions, last first."""
        return self.of.index(shape).flip(0)

    def permute(self, x: Tensor) -> Tensor:
        """Lay out by the other order, and turn it round."""
        return self.of.permute(x).flip(1)

    def restore(self, y: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Undo :meth:`permute`."""
        self._check_length(y, shape)
        return self.of.restore(y.flip(1), shape)


@dataclass(frozen=True)
class Snake(Order):
    """Row by row, every other row backwards, so that each step goes to a neighbour."""

    def index(self, shape: tuple[int, ...]) -> Tensor:
        """Return the positions row by row, every other row (and frame) backwards."""
        index = torch.arange(shape[-1])
        size = shape[-1]
        for length in reversed(shape[:-1]):
            odd = torch.arange(length).unsqueeze(1) % 2 == 1
            index = torch.where(odd, index.flip(0), index) + size * torch.arange(length).unsqueeze(1)
            index, size = index.flatten(), size * length
        return index


@dataclass(frozen=True)
class Morton(Order):
    """By the interleaved bits of the coordinates (Z-order): quarters within quarters, of any extent.

    Source:
        Morton, A computer oriented geodetic data base and a new technique in file sequencing (1966).
    """

    def index(self, shape: tuple[int, ...]) -> Tensor:
        """Return the positions sorted by their interleaved bits."""
        bits = max(shape).bit_length()
        grid = torch.meshgrid(*(torch.arange(length) for length in shape), indexing="ij")
        code = torch.zeros(shape, dtype=torch.int64)
        for bit in range(bits):
            for axis, coordinate in enumerate(reversed(grid)):
                code |= (coordinate >> bit & 1) << (bit * len(shape) + axis)
        return torch.argsort(code.flatten())


@dataclass(frozen=True)
class Hilbert(Order):
    """Along a Hilbert curve through the last two axes, of any extent; further axes before them are walked in order.

    Steps go to a neighbour; where an extent is odd, one step may be diagonal.

    Source:
        Hilbert, Ueber die stetige Abbildung einer Linie auf ein Flächenstück (1891); Červený, gilbert: space-filling
        curve for rectangular domains of arbitrary size (2018).
    """

    def index(self, shape: tuple[int, ...]) -> Tensor:
        """Return the positions along the curve."""
        height, width = (1, *shape)[-2:]
        curve = torch.tensor(_curve(height, width))
        return (torch.arange(_size(shape[:-2])).unsqueeze(1) * (height * width) + curve).flatten()


@torch.compiler.assume_constant_result
def _curve(height: int, width: int) -> list[int]:
    """Return the row-major positions of a generalised Hilbert curve, from the top left corner on."""
    positions: list[int] = []
    if width >= height:
        _walk(positions, width, (0, 0), (width, 0), (0, height))
    else:
        _walk(positions, width, (0, 0), (0, height), (width, 0))
    return positions


Vector = tuple[int, int]


def _walk(out: list[int], width: int, at: Vector, along: Vector, across: Vector) -> None:
    """Visit the rectangle spanned from ``at`` by two vectors (x, y), each along an axis, going along the first."""
    (x, y), (ax, ay), (bx, by) = at, along, across
    long, wide = abs(ax + ay), abs(bx + by)
    (dx, dy), (ex, ey) = (_sign(ax), _sign(ay)), (_sign(bx), _sign(by))
    if wide == 1 or long == 1:
        sx, sy = (dx, dy) if wide == 1 else (ex, ey)
        out.extend((y + i * sy) * width + x + i * sx for i in range(max(long, wide)))
        return
    half: Vector = (int(ax / 2), int(ay / 2))
    middle: Vector = (int(bx / 2), int(by / 2))
    if 2 * long > 3 * wide:
        if abs(sum(half)) % 2 and long > 2:
            half = (half[0] + dx, half[1] + dy)
        _walk(out, width, at, half, across)
        _walk(out, width, (x + half[0], y + half[1]), (ax - half[0], ay - half[1]), across)
        return
    if abs(sum(middle)) % 2 and wide > 2:
        middle = (middle[0] + ex, middle[1] + ey)
    _walk(out, width, at, middle, half)
    _walk(out, width, (x + middle[0], y + middle[1]), along, (bx - middle[0], by - middle[1]))
    end = x + ax - dx + middle[0] - ex, y + ay - dy + middle[1] - ey
    _walk(out, width, end, (-middle[0], -middle[1]), (half[0] - ax, half[1] - ay))


def _sign(x: int) -> int:
    return (x > 0) - (x < 0)


@dataclass(frozen=True)
class Windows(Order):
    """Window after window, each by an order of its own; windows at the far ends may be smaller.

    Args:
        size: Extent of a window along every axis.
        inner: The order inside a window.

    Raises:
        ConfigError: The size is not positive.
    """

    size: int
    inner: Order = field(default_factory=Forward)

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ConfigError(f"Windows: size is {self.size}, expected at least 1")

    def index(self, shape: tuple[int, ...]) -> Tensor:
        """Return the positions window by window."""
        parts = [torch.arange(_size(shape)).view(shape)]
        for axis in range(len(shape)):
            parts = [piece for part in parts for piece in part.split(self.size, axis)]
        return torch.cat([part.flatten()[self.inner.index(tuple(part.shape))] for part in parts])


_ORDERS: dict[str, Callable[[], Order]] = {
    "raster": Forward,
    "columns": Axes,
    "snake": Snake,
    "hilbert": Hilbert,
    "morton": Morton,
    "temporal-first": lambda: Axes(outer=(-2, -1)),
}


def create_order(name: str) -> Order:
    """Build an order by its name.

    Args:
        name: ``raster`` (row by row, frame by frame), ``columns``, ``snake``, ``hilbert``, ``morton``,
            ``temporal-first`` (all frames of a pixel, then the next pixel), or ``windows-N`` for windows of N positions
            a side; with ``-reversed`` behind it, the same backwards.

    Returns:
        The order.

    Raises:
        ConfigError: The name is unknown.

    Example:
        >>> from scanweave.core import create_order
        >>> create_order("snake").index((2, 3)).tolist()
        [0, 1, 2, 5, 4, 3]
    """
    if name.endswith("-reversed"):
        return Reversed(create_order(name.removesuffix("-reversed")))
    kind, _, size = name.partition("-")
    if kind == "windows" and size.isdecimal():
        return Windows(int(size))
    if name not in _ORDERS:
        known = [*_ORDERS, "windows-N"]
        raise ConfigError(
            f"there is no order {name!r}{nearest(name, known)}; there are {', '.join(known)}, each also with -reversed"
        )
    return _ORDERS[name]()


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
