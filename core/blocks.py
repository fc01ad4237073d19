"""Residual blocks around mixers, and stacks of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from timm.layers import DropPath, Mlp, SwiGLU
from torch import Tensor, nn

from .errors import ConfigError
from .orders import Bidirectional
from .registry import Mixer, State, create_mixer

Norm = Literal["rmsnorm", "layernorm"]
Feedforward = Literal["mlp", "swiglu"]
MixerFactory = Callable[[int], Mixer]


def make_norm(norm: Norm, dim: int) -> nn.Module:
    """Build a normalisation over the last axis.

    Args:
        norm: ``rmsnorm`` or ``layernorm``, PyTorch's own.
        dim: Features.

    Returns:
        The module.

    Raises:
        ConfigError: ``norm`` is unknown.
    """
    kinds: dict[str, type[nn.RMSNorm] | type[nn.LayerNorm]] = {"rmsnorm": nn.RMSNorm, "layernorm": nn.LayerNorm}
    if norm not in kinds:
        raise ConfigError(f"norm is {norm!r}, expected one of {', '.join(kinds)}")
    return kinds[norm](dim, eps=1e-5)


def make_feedforward(kind: Feedforward, dim: int, ratio: float, dropout: float = 0.0) -> nn.Module:
    """Build a feed-forward layer from timm's pieces.

    Args:
        kind: ``mlp`` (GELU) or ``swiglu`` (two input maps, one gates the other).
        dim: Features in and out.
        ratio: Hidden features in multiples of dim.
        dropout: Rate after each linear map.

    Returns:
        The module.

    Raises:
        ConfigError: ``kind`` is unknown.

    Source:
        Shazeer, GLU variants improve transformer (2020), equation 6.
    """
    kinds: dict[str, type[Mlp] | type[SwiGLU]] = {"mlp": Mlp, "swiglu": SwiGLU}
    if kind not in kinds:
        raise ConfigError(f"mlp is {kind!r}, expected one of {', '.join(kinds)}")
    return kinds[kind](dim, hidden_features=int(ratio * dim), drop=dropout)


class WeightedAverage(nn.Module):
    """A learned combination of what earlier layers gave, ``sum_i w_i x_i``; at the start the last one alone.

    Args:
        count: Inputs.

    Source:
        Behrouz et al., MambaMixer (2024), on weighted averaging; Pagliardini et al., DenseFormer (2024).
    """

    def __init__(self, count: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(count))
        with torch.no_grad():
            self.weight[-1] = 1

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Combine tensors of one shape."""
        return torch.einsum("i...,i->...", torch.stack(list(inputs)), self.weight)


class Block(nn.Module):
    """Pre-norm residual block: ``x = x + mixer(norm(x))``, then ``x = x + mlp(norm(x))``.

    Args:
        dim: Features.
        mixer: A registered mixer's name, built with its defaults, or a mixer.
        mlp_ratio: Hidden features of the feed-forward layer in multiples of dim; 0 leaves it out.
        mlp: ``mlp`` or ``swiglu``.
        norm: ``rmsnorm`` or ``layernorm``.
        dropout: Rate inside the feed-forward layer.
        drop_path: Chance that a sample skips a branch in training.

    Raises:
        ConfigError: The mixer has another dim, or a name is unknown.

    Source:
        He et al., Identity mappings in deep residual networks (2016), section 3; Huang et al., Deep networks with
        stochastic depth (2016).

    Example:
        >>> import torch
        >>> from scanweave.core import Block
        >>> block = Block(16, "mingru")
        >>> y, state = block(torch.zeros(2, 10, 16))
        >>> y_next, state = block.step(torch.zeros(2, 16), state)
    """

    def __init__(
        self,
        dim: int,
        mixer: str | Mixer,
        *,
        mlp_ratio: float = 2.0,
        mlp: Feedforward = "mlp",
        norm: Norm = "rmsnorm",
        dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.mixer = create_mixer(mixer, dim) if isinstance(mixer, str) else mixer
        if self.mixer.dim != dim:
            raise ConfigError(f"Block: the mixer has dim {self.mixer.dim}, the block has {dim}")
        self.norm1 = make_norm(norm, dim)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.norm2 = make_norm(norm, dim) if mlp_ratio > 0 else None
        self.mlp = make_feedforward(mlp, dim, mlp_ratio, dropout) if mlp_ratio > 0 else None

    def forward(self, x: Tensor, state: State | None = None, reset: Tensor | None = None) -> tuple[Tensor, State]:
        """Run over a sequence.

        Args:
            x: Input (B, L, dim).
            state: The mixer's state from an earlier call, or None.
            reset: (B, L) bool; True where a new sequence starts.

        Returns:
            Output (B, L, dim) and the mixer's state.
        """
        y, state = self.mixer(self.norm1(x), state, reset)
        return self._rest(x, y), state

    def step(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Take one step.

        Args:
            x: Input (B, dim).
            state: The mixer's state, or None at the first step.

        Returns:
            Output (B, dim) and the new state.
        """
        y, state = self.mixer.step(self.norm1(x), state)
        return self._rest(x, y), state

    def initial_state(
        self, batch_size: int, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
    ) -> State:
        """Return the mixer's state before the first step."""
        return self.mixer.initial_state(batch_size, device, dtype)

    def _rest(self, x: Tensor, mixed: Tensor) -> Tensor:
        x = x + self.drop_path(mixed)
        if self.mlp is None or self.norm2 is None:
            return x
        return x + self.drop_path(self.mlp(self.norm2(x)))


class Stack(nn.Module):
    """Blocks one after another, and a final norm.

    Args:
        dim: Features.
        depth: Blocks.
        mixer: A registered mixer's name, or a function from dim to a mixer, called for each block and direction, as
            ``functools.partial(create_mixer, "mamba", d_state=8)``.
        bidirectional: Mix in both directions, each with its own weights; then there is no state and no ``step``.
        mlp_ratio: Hidden features of the feed-forward layers in multiples of dim; 0 leaves them out.
        mlp: ``mlp`` or ``swiglu``.
        norm: ``rmsnorm`` or ``layernorm``.
        dropout: Rate inside the feed-forward layers.
        drop_path: The last block's chance that a sample skips a branch in training; it grows linearly from 0.

    Example:
        >>> import torch
        >>> from scanweave.core import Stack
        >>> stack = Stack(16, depth=2, mixer="lru")
        >>> y, state = stack(torch.zeros(2, 10, 16))
        >>> len(state)
        2
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        mixer: str | MixerFactory = "mamba",
        *,
        bidirectional: bool = False,
        mlp_ratio: float = 2.0,
        mlp: Feedforward = "mlp",
        norm: Norm = "rmsnorm",
        dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        if depth < 1:
            raise ConfigError(f"Stack: depth is {depth}, expected at least 1")

        def build() -> Mixer:
            return create_mixer(mixer, dim) if isinstance(mixer, str) else mixer(dim)

        self.dim = dim
        self.blocks: Sequence[Block] = nn.ModuleList(  # type: ignore[assignment]
            Block(
                dim,
                Bidirectional(build(), build()) if bidirectional else build(),
                mlp_ratio=mlp_ratio,
                mlp=mlp,
                norm=norm,
                dropout=dropout,
                drop_path=rate,
            )
            for rate in torch.linspace(0, drop_path, depth).tolist()
        )
        self.norm = make_norm(norm, dim)

    def forward(
        self, x: Tensor, state: tuple[State, ...] | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, tuple[State, ...]]:
        """Run over a sequence.

        Args:
            x: Input (B, L, dim).
            state: Each block's state from an earlier call, or None.
            reset: (B, L) bool; True where a new sequence starts.

        Returns:
            Output (B, L, dim) and the blocks' states.

        Raises:
            ValueError: There are not as many states as blocks.
        """
        states = []
        for block, before in zip(self.blocks, self._states(state), strict=True):
            x, after = block(x, before, reset)
            states.append(after)
        return self.norm(x), tuple(states)

    def step(self, x: Tensor, state: tuple[State, ...] | None = None) -> tuple[Tensor, tuple[State, ...]]:
        """Take one step.

        Args:
            x: Input (B, dim).
            state: Each block's state, or None at the first step.

        Returns:
            Output (B, dim) and the new states.

        Raises:
            ValueError: There are not as many states as blocks.
        """
        states = []
        for block, before in zip(self.blocks, self._states(state), strict=True):
            x, after = block.step(x, before)
            states.append(after)
        return self.norm(x), tuple(states)

    def initial_state(
        self, batch_size: int, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
    ) -> tuple[State, ...]:
        """Return the blocks' states before the first step."""
        return tuple(block.initial_state(batch_size, device, dtype) for block in self.blocks)

    def _states(self, state: tuple[State, ...] | None) -> tuple[State | None, ...]:
        if state is None:
            return (None,) * len(self.blocks)
        if len(state) != len(self.blocks):
            raise ValueError(f"Stack: state has {len(state)} entries, expected {len(self.blocks)}: one a block")
        return state
