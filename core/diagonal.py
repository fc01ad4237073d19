"""The time-invariant diagonal state space that S5, ConvS5 and LRU share."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernels import linear_scan
from .errors import ConfigError
from .parameters import widen
from .ssm.hippo import hippo_normal


def s5_start(
    mixer: str, dim: int, d_state: int, blocks: int, window: tuple[int, ...] = ()
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw what S5 starts with: HiPPO's normal part in blocks on the diagonal, random maps in its eigenbasis.

    Of each conjugate pair of states one is kept.

    Args:
        mixer: Who asks, for the message.
        dim: Features of the input and of the output.
        d_state: Real states, P.
        blocks: Blocks on the diagonal; P / blocks must be even.
        window: Sizes of the maps' kernels, for maps that are convolutions.

    Returns:
        Lambda (P / 2, 2), B (P / 2, dim, *window, 2) and C (dim, P / 2, *window, 2), all as pairs.

    Raises:
        ConfigError: d_state is not a multiple of 2 * blocks.

    Source:
        Smith et al., S5 (2023), sections 3.2 and 4.2, appendix B.1.1.
    """
    if d_state < 2 or d_state % (2 * blocks):
        raise ConfigError(f"{mixer}: d_state is {d_state}, expected a multiple of 2 * blocks = {2 * blocks}")
    size, taps = d_state // blocks, math.prod(window)
    eigenvalues, vectors = hippo_normal(size)
    basis = torch.block_diag(*[vectors[:, size // 2 :]] * blocks)
    into = torch.randn(d_state, dim, *window, dtype=torch.float64) / (dim * taps) ** 0.5
    out_of = torch.randn(dim, d_state, *window, dtype=torch.float64) / (d_state * taps) ** 0.5
    B = torch.einsum("pn,pc...->nc...", basis.conj(), into.to(basis.dtype))
    C = torch.einsum("cp...,pn->cn...", out_of.to(basis.dtype), basis)
    return _pairs(eigenvalues[size // 2 :].repeat(blocks)), _pairs(B), _pairs(C)


def zero_order_hold(poles: Tensor, log_step: Tensor) -> tuple[Tensor, Tensor]:
    """Discretise a diagonal state space by zero-order hold, with a step size per state.

    ``decay = exp(Lambda dt)``, ``gain = Lambda^-1 (exp(Lambda dt) - 1)``; Lambda's real part is kept below -1e-4, so
    that training cannot make the recurrence grow.

    Args:
        poles: Lambda as pairs (N, 2).
        log_step: log(dt), (N,).

    Returns:
        decay and gain, both (N,) complex, in single precision at least.

    Source:
        Smith et al., S5 (2023), section 2.1.
    """
    real, imaginary = widen(poles).unbind(-1)
    pole = torch.complex(real.clamp(max=-1e-4), imaginary)
    decay = (pole * widen(log_step).exp()).exp()
    return decay, (decay - 1) / pole


def diagonal_ssm(
    u: Tensor, decay: Tensor, B: Tensor, C: Tensor, state: Tensor, reset: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Run a complex diagonal state space with constant coefficients.

    ``h_t = decay * h_{t-1} + B u_t``, ``y_t = Re(C h_t)``

    The two matrix products run in u's dtype, or autocast's, as real products over (real, imaginary) pairs; the
    recurrence in single precision at least.

    Args:
        u: Input (B, L, H), real.
        decay: (N,) complex.
        B: (N, H) complex.
        C: (H, N) complex.
        state: State before the first step, as pairs (B, N, 2), in single precision at least.
        reset: (B, L) bool or None.

    Returns:
        y: (B, L, H), in the dtype of the product.
        state: The last state, as pairs (B, N, 2).

    Source:
        Smith et al., S5 (2023), section 2.1; Orvieto et al., LRU (2023), section 3.
    """
    into = torch.view_as_real(B).transpose(1, 2).flatten(0, 1)
    drive = F.linear(u, into.to(u.dtype)).to(state.dtype).unflatten(-1, (-1, 2))
    drive = torch.view_as_complex(drive)
    h, last = linear_scan(decay.to(drive.dtype), drive, initial_state=torch.view_as_complex(state), reset=reset)
    # Re((c + id)(p + iq)) = c p - d q: the conjugate's pair.
    out_of = torch.view_as_real(C.conj().resolve_conj()).flatten(1)
    y = F.linear(torch.view_as_real(h).flatten(-2).to(u.dtype), out_of.to(u.dtype))
    return y, torch.view_as_real(last)


def _pairs(z: Tensor) -> Tensor:
    return torch.view_as_real(z.to(torch.complex64)).clone()
