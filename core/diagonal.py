"""The time-invariant diagonal state space that S5 and LRU share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernels import linear_scan


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
