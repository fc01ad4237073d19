"""What a mixer is, and how one is found by name."""

from __future__ import annotations

import importlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from typing import Any, ClassVar, Literal, TypeVar, get_args

import torch
from torch import Tensor, nn

from .errors import ConfigError, nearest

State = tuple[Tensor, ...]

Layout = Literal["series", "grid", "clip", "graph"]
"""What a mixer mixes: (B, L, C); (B, *shape, C); frames (B, T, H, W, C); nodes (N, C) with their edges."""

ENTRY_POINT_GROUP = "scanweave.mixers"

_registered: dict[str, type[nn.Module]] = {}


class Mixer(nn.Module, ABC):
    """A map from sequence to sequence that carries a state of fixed size; causal where it is registered.

    A subclass writes :meth:`mix`; checks, the zero state and :meth:`step` are given. Registered by
    :func:`register_mixer`, it can be named wherever a mixer is asked for.

    Args:
        dim: Features of the input and of the output.
        state_shapes: For each tensor of the state its name and its shape without the batch axis, in order.
    """

    layout: ClassVar[Layout] = "series"

    def __init__(self, dim: int, state_shapes: dict[str, tuple[int, ...]]) -> None:
        super().__init__()
        self.dim = dim
        self.state_shapes = state_shapes

    @abstractmethod
    def mix(self, x: Tensor, state: State, reset: Tensor | None) -> tuple[Tensor, State]:
        """Compute :meth:`forward` on checked arguments.

        Args:
            x: Input (B, L, dim).
            state: The state before the first step, float32 (float64 for a float64 input).
            reset: (B, L) bool or None.

        Returns:
            The output (B, L, dim) and the state after the last step.
        """

    def forward(self, x: Tensor, state: State | None = None, reset: Tensor | None = None) -> tuple[Tensor, State]:
        """Run over a sequence, or over the next part of one.

        Args:
            x: Input (B, L, dim), any float dtype and strides, L at least 1.
            state: What an earlier call returned, to go on from there; None starts anew.
            reset: (B, L) bool; where True a new sequence starts at that step: it sees nothing before itself.

        Returns:
            y: Output (B, L, dim).
            state: The state after the last step, a tuple of tensors with the batch as first axis, float32 (float64 for
                a float64 input). Gradients flow through it.

        Raises:
            ValueError: A shape does not fit; the message names the axis and both lengths.
            TypeError: x is not floating point, or reset is not bool.
        """
        self._check_input(x, reset)
        dtype = torch.promote_types(x.dtype, torch.float32)
        if state is None:
            state = self.initial_state(x.shape[0], device=x.device, dtype=dtype)
        else:
            self._check_state(state, x.shape[0])
            state = tuple(part.to(dtype) for part in state)
        return self.mix(x, state, reset)

    def step(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Take one step, in memory that does not grow with the steps taken.

        Args:
            x: Input of this step (B, dim).
            state: The state after the step before; None starts anew.

        Returns:
            The output (B, dim) and the new state.

        Raises:
            ValueError: A shape does not fit.
        """
        if x.dim() != 2:
            raise ValueError(f"{type(self).__name__}.step: x has shape {tuple(x.shape)}, expected (batch, {self.dim})")
        y, state = self.forward(x.unsqueeze(1), state)
        return y.squeeze(1), state

    def initial_state(
        self, batch_size: int, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
    ) -> State:
        """Return the state before the first step.

        Args:
            batch_size: Length of the state's first axis.
            device: Where the state lies.
            dtype: The input's dtype; the state is float32 for half types.

        Returns:
            One tensor for each entry of ``state_shapes``.
        """
        dtype = torch.promote_types(dtype, torch.float32)
        return tuple(torch.zeros(batch_size, *s, device=device, dtype=dtype) for s in self.state_shapes.values())

    def _check_input(self, x: Tensor, reset: Tensor | None) -> None:
        who, shape = type(self).__name__, tuple(x.shape)
        if x.dim() != 3:
            raise ValueError(f"{who}: x has {x.dim()} axes, {shape}; expected 3: (batch, length, {self.dim} features)")
        if shape[2] != self.dim:
            raise ValueError(
                f"{who}: x has {shape[2]} features on axis 2, expected dim = {self.dim}; "
                f"x is {shape}, read as (batch, length, features)"
            )
        if shape[1] == 0:
            raise ValueError(f"{who}: x has length 0 on axis 1, expected at least 1; x is {shape}")
        if not x.is_floating_point():
            raise TypeError(f"{who}: x is {x.dtype}, expected a floating point dtype")
        if reset is None:
            return
        if tuple(reset.shape) != shape[:2]:
            raise ValueError(f"{who}: reset has shape {tuple(reset.shape)}, expected (batch, length) = {shape[:2]}")
        if reset.dtype != torch.bool:
            raise TypeError(f"{who}: reset is {reset.dtype}, expected torch.bool")

    def _check_state(self, state: State, batch_size: int) -> None:
        who = type(self).__name__
        if len(state) != len(self.state_shapes):
            raise ValueError(f"{who}: state has {len(state)} tensors, expected {tuple(self.state_shapes)}")
        for (name, shape), part in zip(self.state_shapes.items(), state, strict=True):
            if part.shape[:1] != (batch_size,):
                raise ValueError(
                    f"{who}: state {name!r} has batch {part.shape[0] if part.dim() else None} on axis 0, "
                    f"x has batch {batch_size}"
                )
            if tuple(part.shape[1:]) != shape:
                raise ValueError(
                    f"{who}: state {name!r} has shape {tuple(part.shape)}, expected {(batch_size, *shape)}: "
                    "it was made by a mixer with other arguments"
                )


M = TypeVar("M", bound=type[nn.Module])


def register_mixer(name: str) -> Callable[[M], M]:
    """Make a subclass of :class:`Mixer`, or of another layout's base, known by name.

    Args:
        name: What :func:`create_mixer` and the command line call it.

    Returns:
        The decorator; it leaves the class as it is.

    Raises:
        TypeError: The class has no layout, or its constructor does not take ``dim`` first and plain defaults after it.
        ConfigError: Another class has that name.

    Example:
        >>> from scanweave.core import Mixer, create_mixer, register_mixer
        >>> @register_mixer("identity")
        ... class Identity(Mixer):
        ...     def __init__(self, dim):
        ...         super().__init__(dim, state_shapes={})
        ...
        ...     def mix(self, x, state, reset):
        ...         return x, state
        >>> create_mixer("identity", 8).dim
        8
    """

    def register(cls: M) -> M:
        if getattr(cls, "layout", None) not in get_args(Layout):
            raise TypeError(f"mixer {name!r}: {cls.__name__} is no Mixer, GridMixer, ClipMixer or GraphMixer")
        names = list(inspect.signature(cls).parameters)
        if names[:1] != ["dim"]:
            raise TypeError(f"mixer {name!r}: {cls.__name__}'s first argument is {names[:1]}, expected dim")
        for argument in _arguments(cls):
            if argument.kind in (argument.VAR_KEYWORD, argument.VAR_POSITIONAL) or argument.default is argument.empty:
                raise TypeError(f"mixer {name!r}: {cls.__name__}'s argument {argument} needs a name and a default")
        known = _registered.setdefault(name, cls)
        if (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ConfigError(f"mixer {name!r} is registered already, by {known.__module__}.{known.__qualname__}")
        _registered[name] = cls
        return cls

    return register


def create_mixer(name: str, dim: int, **kwargs: Any) -> Mixer:
    """Build a mixer by its name.

    Args:
        name: One of :func:`list_mixers`.
        dim: Features of its input and output.
        kwargs: The mixer's own arguments.

    Returns:
        The mixer, freshly initialised.

    Raises:
        ConfigError: The name or an argument is unknown (the message gives those that are known and the nearest), or dim
            is not positive.

    Example:
        >>> from scanweave.core import create_mixer
        >>> create_mixer("mamba", 64, d_state=8).d_state
        8
    """
    return build(name, dim, "series", kwargs)


def build(name: str, dim: int, layout: Layout, arguments: dict[str, Any]) -> Any:
    """Build a mixer of a layout by its name.

    Args:
        name: One of ``list_mixers(layout)``.
        dim: Features of its input and output.
        layout: What it must mix.
        arguments: The mixer's own arguments.

    Returns:
        The mixer.

    Raises:
        ConfigError: The name or an argument is unknown, the mixer has another layout, or dim is not positive.
    """
    cls = _find(name, layout)
    accepted = [argument.name for argument in _arguments(cls)]
    for key in arguments:
        if key not in accepted:
            known = ", ".join(accepted) or "none"
            raise ConfigError(f"mixer {name!r} has no argument {key!r}{nearest(key, accepted)}; it takes {known}")
    if dim < 1:
        raise ConfigError(f"mixer {name!r}: dim is {dim}, expected at least 1")
    return cls(dim, **arguments)


def list_mixers(layout: Layout = "series") -> list[str]:
    """Return the names of all mixers of a layout: built-in, registered, and of installed packages' entry points.

    Args:
        layout: ``series``, ``grid``, ``clip`` or ``graph``.

    Returns:
        The names, sorted.
    """
    _import_built_in()
    return sorted(name for name in {*_registered, *_installed()} if _layout(name) == layout)


# ``scanweave models`` prints each of these under a heading of its own.
list_grid_mixers, list_clip_mixers, list_graph_mixers = (
    partial(list_mixers, layout) for layout in ("grid", "clip", "graph")
)


def _layout(name: str) -> Layout:
    """Return a mixer's layout; one that only an entry point names counts as series until it is loaded."""
    return getattr(_registered[name], "layout") if name in _registered else "series"  # noqa: B009


def _arguments(cls: type[nn.Module]) -> list[inspect.Parameter]:
    return list(inspect.signature(cls).parameters.values())[1:]


def _find(name: str, layout: Layout) -> type[nn.Module]:
    _import_built_in()
    if name not in _registered:
        installed = _installed()
        if name not in installed:
            known = list_mixers(layout)
            raise ConfigError(f"there is no mixer {name!r}{nearest(name, known)}; there are {', '.join(known)}")
        register_mixer(name)(installed[name].load())
    if (own := _layout(name)) != layout:
        maker = "create_mixer" if own == "series" else f"create_{own}_mixer"
        raise ConfigError(f"mixer {name!r} mixes a {own}, asked for was one of a {layout}; build it by {maker}")
    return _registered[name]


def _import_built_in() -> None:
    importlib.import_module(".mixers", __package__)


def _installed() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}
