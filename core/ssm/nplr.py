"""S4's system: a diagonal less a product of rank one, bilinear, with its kernel by Cauchy sums or by powers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .system import Dense, deinterleave, interleave

CAUCHY_BLOCK = 1 << 22  # entries of (C, N, frequencies) held at a time


class NPLR(Dense):
    """``A = Lambda - P P^*`` in conjugate pairs, of which one member is kept; bilinear with steps dt.

    ``Abar = (2/dt - A)^-1 (2/dt + A)``, ``Bbar = (2/dt - A)^-1 2 B``; by Woodbury's identity one application costs
    O(N). ``y = 2 Re(C x)``.

    Args:
        poles: Lambda, (C, N) complex.
        P: (C, N) complex.
        B: (C, N) complex.
        C: (C, N) complex.
        dt: (C, 1) real, > 0.
        cauchy: Whether the kernel comes from the generating function; else from products of powers, as a dense
            system's. Both give the same numbers.

    Source:
        Gu et al., S4 (2022), section 3.2 and appendix C.2.
    """

    def __init__(self, poles: Tensor, P: Tensor, B: Tensor, C: Tensor, dt: Tensor, cauchy: bool) -> None:
        self.cauchy = cauchy
        self.poles, self.P, self.continuous_B, self.dt = poles, P, B, dt
        self._resolvent = 1 / (2 / dt - poles)
        into = self._solve(2 * B.unsqueeze(-1)).squeeze(-1)
        pairs = torch.eye(2 * poles.shape[1], dtype=dt.dtype, device=dt.device).expand(len(poles), -1, -1)
        super().__init__(self._apply(pairs), interleave(into), 2 * interleave(C.conj()))

    def advance(self, x: Tensor, steps: int, transposed: bool = False) -> Tensor:
        """Apply the factors for one step, squares of the full matrix for more."""
        if steps > 1 or transposed or x.dtype != self.dt.dtype:
            return super().advance(x, steps, transposed)
        return self._apply(x.reshape(*x.shape[:2], -1)).reshape(x.shape)

    def kernel(self, length: int) -> Tensor:
        """Return the impulse response (C, length), with ``cauchy`` from its generating function at the roots of unity.

        ``sum_l K_l w^l = C (1 - Abar^L w^L) (1 - Abar w)^-1 Bbar``; the Cauchy sums go over blocks of frequencies.

        Source:
            Gu et al., S4 (2022), section 3.2 and appendix C.3, with w = e^(-i theta) and both sides divided by
            2 e^(-i theta/2), so that no root of unity is singular.
        """
        if not self.cauchy:
            return super().kernel(length)
        truncated = self.C - self.advance(self.C, length, transposed=True)
        C = deinterleave(truncated).conj() / 2
        P, B = self.P, self.continuous_B
        weights = torch.stack([C * B, C * P, P.conj() * B, P.conj() * P], 1)
        half_angle = torch.pi / length * torch.arange(length // 2 + 1, dtype=self.dt.dtype, device=self.dt.device)
        size = max(1, CAUCHY_BLOCK // self.poles.numel())
        blocks = half_angle.split(size)
        call = _direct if len(blocks) == 1 or not torch.is_grad_enabled() else _recomputed
        parts = [call(_generating_function, weights, self.poles, self.dt, block) for block in blocks]
        return torch.fft.irfft(torch.cat(parts, -1), length)

    def _solve(self, right: Tensor) -> Tensor:
        """Return ``(2/dt - A)^-1 right``, (C, N, M) complex."""
        P, resolvent = self.P.unsqueeze(-1), self._resolvent.unsqueeze(-1)
        spread, solved = resolvent * P, resolvent * right
        return solved - 2 * spread * _inner(P, solved) / (1 + 2 * _inner(P, spread))

    def _apply(self, x: Tensor) -> Tensor:
        """Return ``Abar x``, (C, S, M) real."""
        z, P = deinterleave(x), self.P.unsqueeze(-1)
        right = (2 / self.dt + self.poles).unsqueeze(-1) * z - 2 * P * _inner(P, z)
        return interleave(self._solve(right))


def _inner(p: Tensor, z: Tensor) -> Tensor:
    return (p.conj() * z).real.sum(1, keepdim=True)


def _generating_function(weights: Tensor, poles: Tensor, dt: Tensor, half_angle: Tensor) -> Tensor:
    """Return the generating function (C, F) at ``exp(-2i half_angle)``; weights (C, 4, N).

    A pair adds ``v / (ia - c Lambda) + v* / (ia - c Lambda*) = 2 (ia Re v - c Re(v Lambda*)) / D`` with
    ``D = c^2 |Lambda|^2 - a^2 - 2i a c Re Lambda``, ``a = (2 / dt) sin``, ``c = cos``.
    """
    a, c = 2 / dt * half_angle.sin(), half_angle.cos()
    magnitude, decay = poles.abs().unsqueeze(-1), poles.real.unsqueeze(-1)
    high = a.unsqueeze(1)
    real = (c * magnitude - high) * (c * magnitude + high)
    imaginary = -2 * high * c * decay
    scale = 1 / (real.square() + imaginary.square())
    inverse = torch.cat([real * scale, -imaginary * scale], -1)
    straight = torch.complex(*(weights.real @ inverse).chunk(2, -1))
    turned = torch.complex(*((weights * poles.conj().unsqueeze(1)).real @ inverse).chunk(2, -1))
    cb, cp, pb, pp = (2 * (1j * high * straight - c * turned)).unbind(1)
    return torch.polar(torch.ones_like(c), half_angle) * (cb - c * cp * pb / (1 + c * pp))


def _direct(function: Callable[..., Tensor], *arguments: Tensor) -> Tensor:
    return function(*arguments)


def _recomputed(function: Callable[..., Tensor], *arguments: Tensor) -> Tensor:
    return checkpoint(function, *arguments, use_reentrant=False)
