"""Discrete linear systems with constant coefficients: one per channel, with a scalar input and output."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ...kernels import linear_scan


def wide_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype of a system's coefficients: float64, or float32 on MPS, which has no wider one."""
    return torch.float32 if device.type == "mps" else torch.float64


class System(ABC):
    """``x_t = A x_{t-1} + B u_t``, ``y_t = C x_t`` for each channel, all real.

    Coefficients are in double precision: the phase of a power grows with the length. Signals keep their own dtype.

    Args:
        B: (C, S), S state features.
        C: (C, S).
    """

    def __init__(self, B: Tensor, C: Tensor) -> None:
        self.B, self.C = B, C
        self._columns: dict[int, Tensor] = {}

    @abstractmethod
    def advance(self, x: Tensor, steps: int, transposed: bool = False) -> Tensor:
        """Return ``A^steps x``, or ``(A^T)^steps x``.

        Args:
            x: (C, S, ...), any further axes.
            steps: At least 1.
            transposed: Whether to use A's transpose.

        Returns:
            x's shape and dtype.
        """

    def orbit(self, x: Tensor, stride: int, count: int, first: int = 0, transposed: bool = False) -> Tensor:
        """Return ``A^(first + stride j) x`` for j = 0..count-1, by doubling.

        Args:
            x: (C, S, ...).
            stride: Steps between two powers.
            count: How many.
            first: The first power.
            transposed: Whether to use A's transpose.

        Returns:
            (C, S, ..., count).
        """
        powers = (self.advance(x, first, transposed) if first else x).unsqueeze(-1)
        while (known := powers.shape[-1]) < count:
            more = self.advance(powers[..., : count - known], stride * known, transposed)
            powers = torch.cat([powers, more], -1)
        return powers

    def columns(self, count: int) -> Tensor:
        """Return ``A^i B`` for i = 0..count-1, (C, S, count): what an input of 1 leaves after i steps."""
        if count not in self._columns:
            self._columns[count] = self.orbit(self.B, 1, count)
        return self._columns[count]

    def rows(self, count: int) -> Tensor:
        """Return ``C A^(i + 1)`` for i = 0..count-1, (C, S, count): what a state is seen as i + 1 steps on."""
        return self.orbit(self.C, 1, count, first=1, transposed=True)

    def kernel(self, length: int) -> Tensor:
        """Return the impulse response ``K_l = C A^l B``, l = 0..length-1, (C, length).

        Powers up to a block of q times powers of that block: one product of (length / q, S) with (S, q), and nothing
        of size S * length.
        """
        stride = block_length(length)
        rows = self.orbit(self.C, stride, -(-length // stride), transposed=True)
        return (rows.mT @ self.columns(stride)).flatten(1)[:, :length]

    def scan(self, drive: Tensor, initial: Tensor, steps: int, broken: Tensor | None) -> Tensor:
        """Return the states ``x_j = A^steps x_{j-1} + drive_j``, j = 1..J, in log J rounds.

        Args:
            drive: (C, S, B, J).
            initial: x_0, (C, S, B).
            steps: Steps between two states.
            broken: (B, J) bool; where True nothing is carried over.

        Returns:
            (C, S, B, J).
        """
        first = self._carry(initial.unsqueeze(-1), steps, None if broken is None else broken[:, :1])
        return self._scan(torch.cat([drive[..., :1] + first, drive[..., 1:]], -1), steps, broken)

    def _scan(self, x: Tensor, steps: int, broken: Tensor | None) -> Tensor:
        count = x.shape[-1]
        if count == 1:
            return x
        pairs = count // 2
        even, odd = x[..., 0::2], x[..., 1::2]
        joined = merged = later = None
        if broken is not None:
            joined, later = broken[:, 1::2], broken[:, 2::2]
            merged = joined | broken[:, 0 : 2 * pairs : 2]
        at_odd = self._scan(odd + self._carry(even[..., :pairs], steps, joined), 2 * steps, merged)
        at_even = even[..., :1]
        if count > 2:
            carried = self._carry(at_odd[..., : (count - 1) // 2], steps, later)
            at_even = torch.cat([at_even, even[..., 1:] + carried], -1)
        both = torch.stack([at_even[..., :pairs], at_odd], -1).flatten(-2)
        return both if count == 2 * pairs else torch.cat([both, at_even[..., pairs:]], -1)

    def _carry(self, x: Tensor, steps: int, broken: Tensor | None) -> Tensor:
        carried = self.advance(x, steps)
        return carried if broken is None else carried.masked_fill(broken, 0)


def block_length(length: int) -> int:
    """Return into how long blocks a length is cut: a power of two, about four times the root.

    The longer the blocks, the fewer states between them, which every sequence of a batch has for itself.
    """
    return min(length, 4 << (length.bit_length() // 2))


class Diagonal(System):
    """A system whose A is diagonal and complex: one of each conjugate pair, kept as (real, imaginary) side by side.

    ``y = 2 Re(C x)``

    Args:
        log_decay: log(A), (C, N) complex.
        B: (C, N) complex.
        C: (C, N) complex.
    """

    def __init__(self, log_decay: Tensor, B: Tensor, C: Tensor) -> None:
        super().__init__(interleave(B), 2 * interleave(C.conj()))
        self.log_decay = log_decay
        self._tables: dict[tuple[int, int, int], Tensor] = {}

    def advance(self, x: Tensor, steps: int, transposed: bool = False) -> Tensor:
        """Multiply by one power; the transpose's are the conjugates."""
        return self._multiply(x, self._powers(1, 1, first=steps)[..., 0], transposed)

    def orbit(self, x: Tensor, stride: int, count: int, first: int = 0, transposed: bool = False) -> Tensor:
        """Multiply by a table of powers."""
        if count == 1 and first == 0:
            return x.unsqueeze(-1)
        return self._multiply(x.unsqueeze(-1), self._powers(stride, count, first), transposed)

    def scan(self, drive: Tensor, initial: Tensor, steps: int, broken: Tensor | None) -> Tensor:
        """Run the elementwise recurrence over the states."""
        channels, features, batch, _ = drive.shape
        inputs = deinterleave(drive).permute(2, 3, 0, 1)
        decay = self._powers(1, 1, first=steps)[..., 0].to(inputs.dtype)
        start = deinterleave(initial).permute(2, 0, 1)
        states, _ = linear_scan(decay, inputs, initial_state=start, reset=broken)
        return interleave(states.permute(2, 3, 0, 1)).reshape(channels, features, batch, -1)

    def _powers(self, stride: int, count: int, first: int = 0) -> Tensor:
        """Return ``A^(first + stride j)`` for j = 0..count-1, (C, N, count) complex."""
        key = (stride, count, first)
        if key not in self._tables:
            rate, phase = self.log_decay.real.unsqueeze(-1), self.log_decay.imag.unsqueeze(-1)
            times = first + stride * torch.arange(count, dtype=rate.dtype, device=rate.device)
            # Real functions are vectorised; the complex exponential is not.
            size, angle = (rate * times).exp(), phase * times
            self._tables[key] = torch.complex(size * angle.cos(), size * angle.sin())
        return self._tables[key]

    def _multiply(self, x: Tensor, powers: Tensor, transposed: bool) -> Tensor:
        """Multiply x (C, 2 N, ...) by powers (C, N) or (C, N, count), which meet its first and last axes."""
        z = deinterleave(x)
        while powers.dim() < z.dim():
            powers = powers.unsqueeze(2)
        powers = powers.to(z.dtype)
        return interleave(z * (powers.conj() if transposed else powers))


class Dense(System):
    """A system with a full A; powers are repeated squares, N^3 operations each.

    Args:
        A: (C, S, S).
        B: (C, S).
        C: (C, S).
    """

    def __init__(self, A: Tensor, B: Tensor, C: Tensor) -> None:
        super().__init__(B, C)
        self.squares = [A]

    def advance(self, x: Tensor, steps: int, transposed: bool = False) -> Tensor:
        """Multiply by the squares that the number of steps is made of."""
        flat = x.flatten(2) if x.dim() > 2 else x.unsqueeze(2)
        for bit in range(steps.bit_length()):
            if steps >> bit & 1:
                power = self._square(bit).to(x.dtype)
                flat = (power.mT if transposed else power) @ flat
        return flat.reshape(x.shape)

    def _square(self, index: int) -> Tensor:
        while len(self.squares) <= index:
            self.squares.append(self.squares[-1] @ self.squares[-1])
        return self.squares[index]


def interleave(z: Tensor) -> Tensor:
    """Return complex (C, N, ...) as real (C, 2 N, ...), each number's two parts side by side."""
    return torch.stack([z.real, z.imag], 2).flatten(1, 2)


def deinterleave(x: Tensor) -> Tensor:
    """Return real (C, 2 N, ...) as complex (C, N, ...)."""
    real, imaginary = x.unflatten(1, (-1, 2)).unbind(2)
    return torch.complex(real, imaginary)
