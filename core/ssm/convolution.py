"""A time-invariant system over a sequence: by FFT, or in blocks where sequences restart, and one step at a time."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ...kernels import causal_conv1d
from .system import System, block_length

RESTART_BLOCK = 16  # at most so many steps are convolved tap by tap where sequences restart


def fast_length(least: int) -> int:
    """Return the smallest 2^k, 3 * 2^k, 5 * 2^k or 9 * 2^k that is not below a length: sizes that transform fast."""
    return min(odd << max(0, (-(-least // odd) - 1).bit_length()) for odd in (1, 3, 5, 9))


def causal_convolution(u: Tensor, kernel: Tensor) -> Tensor:
    """Convolve every sequence of a channel with the channel's kernel.

    ``y_t = sum_{l=0}^{t} K_l u_{t-l}``

    Args:
        u: (C, B, L) real.
        kernel: (C, L), same dtype.

    Returns:
        (C, B, L).
    """
    length = u.shape[-1]
    size = fast_length(2 * length - 1)
    product = torch.fft.rfft(u, size) * torch.fft.rfft(kernel, size).unsqueeze(1)
    return torch.fft.irfft(product, size)[..., :length]


def run_system(system: System, u: Tensor, state: Tensor, reset: Tensor | None) -> tuple[Tensor, Tensor]:
    """Run a system over a sequence, or over the next part of one.

    ``y_t = sum_{l<=t} K_l u_{t-l} + C A^(t+1) x_{-1}``: the sum by FFT, the carried state by products with powers of A
    within a block and between blocks. With ``reset`` the sum goes over short blocks, tap by tap, and the states between
    them through :meth:`.System.scan`. Nothing of the size of all states is made. Autocast is off in here.

    Args:
        system: C channels with S state features.
        u: Input (B, L, C), L at least 1.
        state: State before the first step (B, C, S), in single precision at least.
        reset: (B, L) bool; where True the state before that step counts as zero.

    Returns:
        y: (B, L, C), in the state's dtype.
        state: The state after the last step, (B, C, S).

    Source:
        Gu et al., S4 (2022), section 2.4.
    """
    with torch.autocast(u.device.type, enabled=False):
        u = u.to(state.dtype)
        carried = state.permute(1, 2, 0)
        if u.shape[1] == 1:
            y, last = _step(system, u[:, 0].T, carried, reset)
            return y.T.unsqueeze(1), last.permute(2, 0, 1)
        length = int(u.shape[1])  # a compiler would take it for a variable, which has no bits to count
        block = block_length(length)
        if reset is not None:
            block = min(RESTART_BLOCK, -(-block // 4))
        states, last = _block_states(system, u, carried, reset, block)
        if reset is None:
            return _convolve(system, u, carried, block), last.permute(2, 0, 1)
        return _convolve_blocks(system, u, states, reset, block), last.permute(2, 0, 1)


def _step(system: System, u: Tensor, state: Tensor, reset: Tensor | None) -> tuple[Tensor, Tensor]:
    """Take one step: u (C, B), state (C, S, B)."""
    if reset is not None:
        state = state.masked_fill(reset[:, 0], 0)
    # In single precision the rounding of A would be the same at every step, and add up.
    wide = system.advance(state.to(system.B.dtype), 1) + system.B.unsqueeze(-1) * u.unsqueeze(1).to(system.B.dtype)
    y = (system.C.unsqueeze(1) @ wide).squeeze(1)
    return y.to(state.dtype), wide.to(state.dtype)


def _block_states(system: System, u: Tensor, state: Tensor, reset: Tensor | None, block: int) -> tuple[Tensor, Tensor]:
    """Return the states before each block (C, S, B, J) and the last one (C, S, B)."""
    whole = (u.shape[1] - 1) // block
    columns = system.columns(block).to(u.dtype)
    states = state.unsqueeze(-1)
    if whole:
        head = slice(0, whole * block)
        pieces = u[:, head].unflatten(1, (whole, block))
        broken = None
        if reset is not None:
            starts = reset[:, head].unflatten(1, (whole, block))
            pieces, broken = _after_last_start(pieces, starts), starts.any(-1)
        states = torch.cat([states, system.scan(_drive(columns, pieces), state, block, broken)], -1)
    tail, carried = u[:, None, whole * block :], states[..., -1]
    carried = system.advance(carried, tail.shape[2])
    if reset is not None:
        starts = reset[:, None, whole * block :]
        tail, carried = _after_last_start(tail, starts), carried.masked_fill(starts.any(-1)[:, 0], 0)
    return states, carried + _drive(columns, tail)[..., 0]


def _drive(columns: Tensor, pieces: Tensor) -> Tensor:
    """Return what each piece (B, J, q, C) adds to the state at its end, (C, S, B, J)."""
    batch, count, length, channels = pieces.shape
    flat = pieces.reshape(batch * count, length, channels).permute(2, 1, 0)
    return (columns[..., :length].flip(-1) @ flat).unflatten(-1, (batch, count))


def _after_last_start(pieces: Tensor, starts: Tensor) -> Tensor:
    sequence = starts.cumsum(-1)
    return pieces * (sequence == sequence[..., -1:]).unsqueeze(-1)


def _respond(system: System, states: Tensor, block: int) -> Tensor:
    """Return what the states before each block (C, S, B, J) add to its outputs, (C, B, J, block)."""
    rows = system.rows(block).to(states.dtype)
    return (states.flatten(2).mT @ rows).unflatten(1, states.shape[2:])


def _convolve(system: System, u: Tensor, state: Tensor, block: int) -> Tensor:
    length = int(u.shape[1])
    kernel = system.kernel(length).to(u.dtype)
    free = system.orbit(state, block, -(-length // block))
    y = causal_convolution(u.permute(2, 0, 1).contiguous(), kernel)
    return (y + _respond(system, free, block).flatten(2)[..., :length]).permute(1, 2, 0)


def _convolve_blocks(system: System, u: Tensor, states: Tensor, reset: Tensor, block: int) -> Tensor:
    batch, length, channels = u.shape
    count = states.shape[-1]
    missing = count * block - length
    shape = (batch * count, block)
    blocks = F.pad(u, (0, 0, 0, missing)).reshape(*shape, channels)
    starts = F.pad(reset, (0, missing)).reshape(shape)
    taps = system.kernel(block).to(u.dtype).flip(1)
    y, _ = causal_conv1d(blocks, taps, reset=starts)
    seen = (starts.cumsum(1) == 0).unsqueeze(-1)
    carried = _respond(system, states, block).permute(1, 2, 3, 0).reshape(y.shape)
    return (y + seen * carried).reshape(batch, -1, channels)[:, :length]
