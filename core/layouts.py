"""Mixers of what is more than a series: grids, the frames of a clip, the nodes of a graph."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from .errors import ConfigError
from .orders import Order, create_order
from .registry import Layout, Mixer, State, build, create_mixer, list_mixers

Merge = Literal["mean", "sum"]


class GridMixer(nn.Module, ABC):
    """A map of grids that sees every position from every other; it has no state and no before.

    A subclass writes :meth:`mix`. Registered by :func:`~scanweave.core.register_mixer`, it serves wherever a mixer of
    images is asked for.

    Args:
        dim: Features of the input and of the output.
    """

    layout: ClassVar[Layout] = "grid"

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    @abstractmethod
    def mix(self, x: Tensor) -> Tensor:
        """Compute :meth:`forward` on a checked x (B, *shape, dim)."""

    def forward(self, x: Tensor) -> Tensor:
        """Mix over a grid.

        Args:
            x: Input (B, *shape, dim): (B, H, W, dim) for images.

        Returns:
            Output, x's shape.

        Raises:
            ValueError: x has no grid axis, an empty one, or not dim features.
            TypeError: x is not floating point.
        """
        if x.dim() < 3:
            raise ValueError(
                f"{type(self).__name__}: x has shape {tuple(x.shape)}, expected (batch, *grid, {self.dim})"
            )
        _check(type(self).__name__, x, self.dim)
        return self.mix(x)


class Scanned(GridMixer):
    """Mixers of series along orders of a grid: ``y = merge_i restore_i(mixer_i(permute_i(x)))``.

    Args:
        mixers: One mixer for all orders, or one for each.
        orders: How the grid is laid out as sequences.
        merge: ``mean`` or ``sum``.

    Raises:
        ConfigError: Mixers and orders do not match in number, or mixers in dim.

    Source:
        Zhu et al., Vision Mamba (2024), section 3.3; Liu et al., VMamba (2024), section 4.2.
    """

    def __init__(self, mixers: Sequence[Mixer], orders: Sequence[Order], merge: Merge = "mean") -> None:
        if not orders or len(mixers) not in (1, len(orders)):
            raise ConfigError(
                f"Scanned: found {len(mixers)} mixers and {len(orders)} orders, expected one each, or one"
            )
        dims = {mixer.dim for mixer in mixers}
        if len(dims) != 1:
            raise ConfigError(f"Scanned: the mixers' dims are {sorted(dims)}, expected one")
        if merge not in ("mean", "sum"):
            raise ConfigError(f"Scanned: merge is {merge!r}, expected 'mean' or 'sum'")
        super().__init__(dims.pop())
        self.mixers = nn.ModuleList(mixers)
        self.orders, self.merge = tuple(orders), merge

    def mix(self, x: Tensor) -> Tensor:
        """Mix along every order; orders that share a mixer are one batch to it."""
        shape = tuple(x.shape[1:-1])
        laid = [order.permute(x) for order in self.orders]
        if len(self.mixers) == 1:
            found: Sequence[Tensor] = self.mixers[0](torch.cat(laid))[0].chunk(len(laid))
        else:
            found = [mixer(sequence)[0] for mixer, sequence in zip(self.mixers, laid, strict=True)]
        back = [order.restore(y, shape) for order, y in zip(self.orders, found, strict=True)]
        y = torch.stack(back).sum(0) if len(back) > 1 else back[0]
        return y / len(back) if self.merge == "mean" else y


class ClipMixer(nn.Module, ABC):
    """A causal map of clips, frame after frame, with a state of fixed size at every pixel.

    A subclass writes :meth:`mix`.

    Args:
        dim: Features of the input and of the output.
        state_shapes: For each tensor of the state its name and what stands at a pixel: it is (B, H, W, *shape).
    """

    layout: ClassVar[Layout] = "clip"

    def __init__(self, dim: int, state_shapes: dict[str, tuple[int, ...]]) -> None:
        super().__init__()
        self.dim = dim
        self.state_shapes = state_shapes

    @abstractmethod
    def mix(self, x: Tensor, state: State, reset: Tensor | None) -> tuple[Tensor, State]:
        """Compute :meth:`forward` on checked arguments."""

    def forward(self, x: Tensor, state: State | None = None, reset: Tensor | None = None) -> tuple[Tensor, State]:
        """Run over a clip, or over the next part of one.

        Args:
            x: Frames (B, T, H, W, dim), T at least 1.
            state: What an earlier call returned, to go on from there; None starts anew.
            reset: (B, T) bool; where True a new clip starts at that frame.

        Returns:
            y: Output (B, T, H, W, dim).
            state: The state after the last frame, each (B, H, W, *shape), float32 (float64 for a float64 input).

        Raises:
            ValueError: A shape does not fit.
            TypeError: x is not floating point, or reset is not bool.
        """
        who = type(self).__name__
        if x.dim() != 5:
            raise ValueError(
                f"{who}: x has shape {tuple(x.shape)}, expected (batch, frames, height, width, {self.dim})"
            )
        _check(who, x, self.dim)
        if reset is not None and (reset.shape != x.shape[:2] or reset.dtype != torch.bool):
            kind = TypeError if reset.shape == x.shape[:2] else ValueError
            raise kind(
                f"{who}: reset is {reset.dtype} {tuple(reset.shape)}, expected torch.bool (batch, frames) = "
                f"{tuple(x.shape[:2])}"
            )
        dtype = torch.promote_types(x.dtype, torch.float32)
        size = (x.shape[2], x.shape[3])
        if state is None:
            return self.mix(x, self.initial_state(x.shape[0], size, x.device, dtype), reset)
        wanted = [(x.shape[0], *size, *shape) for shape in self.state_shapes.values()]
        if [tuple(part.shape) for part in state] != wanted:
            found = [tuple(part.shape) for part in state]
            raise ValueError(f"{who}: the state's shapes are {found}, expected {wanted} for x {tuple(x.shape)}")
        return self.mix(x, tuple(part.to(dtype) for part in state), reset)

    def step(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Take one frame, in memory that does not grow with the frames taken.

        Args:
            x: Frame (B, H, W, dim).
            state: The state after the frame before; None starts anew.

        Returns:
            The output (B, H, W, dim) and the new state.

        Raises:
            ValueError: A shape does not fit.
        """
        if x.dim() != 4:
            raise ValueError(
                f"{type(self).__name__}.step: x has shape {tuple(x.shape)}, expected (B, H, W, {self.dim})"
            )
        y, state = self.forward(x.unsqueeze(1), state)
        return y.squeeze(1), state

    def initial_state(
        self,
        batch_size: int,
        size: tuple[int, int],
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> State:
        """Return the state before the first frame.

        Args:
            batch_size: Length of the state's first axis.
            size: Height and width of the frames.
            device: Where the state lies.
            dtype: The input's dtype; the state is float32 for half types.

        Returns:
            One tensor of zeros for each entry of ``state_shapes``.
        """
        dtype = torch.promote_types(dtype, torch.float32)
        shapes = self.state_shapes.values()
        return tuple(torch.zeros(batch_size, *size, *shape, device=device, dtype=dtype) for shape in shapes)


class GraphMixer(nn.Module, ABC):
    """A map of the nodes of a directed acyclic graph, along its edges.

    A subclass writes :meth:`mix`. Several graphs are one whose parts have no edge in common.

    Args:
        dim: Features of the input and of the output.
    """

    layout: ClassVar[Layout] = "graph"

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    @abstractmethod
    def mix(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """Compute :meth:`forward` on checked arguments."""

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """Mix along the edges.

        Args:
            x: Nodes (N, dim).
            edge_index: (2, E) int64: each edge's source and its target, without cycles.

        Returns:
            Nodes (N, dim).

        Raises:
            ValueError: A shape does not fit, or the edges go round in a cycle or to nodes that are not there.
            TypeError: x is not floating point, or edge_index is not int64.
        """
        who = type(self).__name__
        if x.dim() != 2:
            raise ValueError(f"{who}: x has shape {tuple(x.shape)}, expected (nodes, {self.dim})")
        _check(who, x, self.dim)
        if edge_index.dtype != torch.int64:
            raise TypeError(f"{who}: edge_index is {edge_index.dtype}, expected torch.int64")
        if edge_index.dim() != 2 or edge_index.shape[0] != 2:
            raise ValueError(f"{who}: edge_index has shape {tuple(edge_index.shape)}, expected (2, edges)")
        return self.mix(x, edge_index)


def create_grid_mixer(
    name: str,
    dim: int,
    *,
    orders: Sequence[str] = ("raster", "raster-reversed"),
    merge: Merge = "mean",
    shared: bool = False,
    **kwargs: Any,
) -> GridMixer:
    """Build a mixer of grids by its name: one made for grids, or any mixer of series along orders of the grid.

    Args:
        name: One of ``list_mixers("grid")`` or of :func:`~scanweave.core.list_mixers`.
        dim: Features of its input and output.
        orders: For a mixer of series, the orders it goes along, by name (:func:`~scanweave.core.create_order`).
        merge: How the orders' outputs are joined, ``mean`` or ``sum``.
        shared: Whether all orders share one mixer's weights.
        kwargs: The mixer's own arguments.

    Returns:
        The mixer, freshly initialised.

    Raises:
        ConfigError: A name or an argument is unknown, or dim is not positive.

    Example:
        >>> import torch
        >>> from scanweave.core import create_grid_mixer
        >>> mixer = create_grid_mixer("mingru", 8, orders=("raster", "columns-reversed"))
        >>> mixer(torch.zeros(2, 3, 5, 8)).shape
        torch.Size([2, 3, 5, 8])
    """
    if name in list_mixers("grid"):
        mixer: GridMixer = build(name, dim, "grid", kwargs)
        return mixer
    count = 1 if shared else len(orders)
    return Scanned([create_mixer(name, dim, **kwargs) for _ in range(count)], list(map(create_order, orders)), merge)


def create_clip_mixer(name: str, dim: int, **kwargs: Any) -> ClipMixer:
    """Build a mixer of clips by its name.

    Args:
        name: One of ``list_mixers("clip")``.
        dim: Features of its input and output.
        kwargs: The mixer's own arguments.

    Returns:
        The mixer.

    Raises:
        ConfigError: The name or an argument is unknown, or dim is not positive.
    """
    mixer: ClipMixer = build(name, dim, "clip", kwargs)
    return mixer


def create_graph_mixer(name: str, dim: int, **kwargs: Any) -> GraphMixer:
    """Build a mixer of graphs by its name.

    Args:
        name: One of ``list_mixers("graph")``.
        dim: Features of its input and output.
        kwargs: The mixer's own arguments.

    Returns:
        The mixer.

    Raises:
        ConfigError: The name or an argument is unknown, or dim is not positive.
    """
    mixer: GraphMixer = build(name, dim, "graph", kwargs)
    return mixer


def _check(who: str, x: Tensor, dim: int) -> None:
    if x.shape[-1] != dim:
        raise ValueError(
            f"{who}: x has {x.shape[-1]} features on its last axis, expected dim = {dim}; x is {tuple(x.shape)}"
        )
    if 0 in x.shape[1:-1]:
        raise ValueError(f"{who}: x has an axis of length 0, expected at least 1; x is {tuple(x.shape)}")
    if not x.is_floating_point():
        raise TypeError(f"{who}: x is {x.dtype}, expected a floating point dtype")
