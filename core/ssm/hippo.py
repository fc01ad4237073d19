"""HiPPO matrices: how a state of Legendre coefficients follows its input, ``x' = A x + B u``."""

from __future__ import annotations

import torch
from torch import Tensor


def legs(size: int) -> tuple[Tensor, Tensor]:
    """Return the scaled Legendre measure's matrices: all of the past, stretched.

    ``A_nk = -sqrt((2n + 1)(2k + 1)) [n > k] - (n + 1) [n = k]``, ``B_n = sqrt(2n + 1)``

    Args:
        size: Order N.

    Returns:
        A (N, N) and B (N,), float64.

    Source:
        Gu et al., HiPPO (2020), theorem 2.
    """
    root = _root(size)
    n = torch.arange(size, dtype=torch.float64)
    return -torch.outer(root, root).tril(-1) - torch.diag(n + 1), root


def legt(size: int) -> tuple[Tensor, Tensor]:
    """Return the translated Legendre measure's matrices: a window of one unit of time.

    ``A_nk = -sqrt((2n + 1)(2k + 1)) * (1 where k <= n, else (-1)^(n - k))``, ``B_n = sqrt(2n + 1)``; then
    ``u(t - s)`` is about ``sum_n sqrt(2n + 1) P_n(1 - 2s) x_n(t)`` for s in [0, 1].

    Args:
        size: Order N.

    Returns:
        A (N, N) and B (N,), float64.

    Source:
        Gu et al., HiPPO (2020), theorem 1, in the orthonormal scale.
    """
    root = _root(size)
    n = torch.arange(size)
    alternating = 1 - 2 * ((n[:, None] - n) % 2).double()
    return -torch.outer(root, root) * torch.where(n <= n[:, None], 1.0, alternating), root


def hippo_normal(size: int) -> tuple[Tensor, Tensor]:
    """Diagonalise the normal part of HiPPO-LegS.

    ``A_nk = -1/2 [n = k] - sqrt((n + 1/2)(k + 1/2)) sign(n - k) [n != k] = V diag(Lambda) V^*``

    Args:
        size: Order of the matrix.

    Returns:
        Eigenvalues (size,) complex128, sorted by imaginary part, and eigenvectors (size, size) as columns.

    Source:
        Smith et al., S5 (2023), section 4.2 and appendix B.1.1.
    """
    full = torch.outer(_root(size), _root(size)) / 2
    skew = full.triu(1) - full.tril(-1)
    # A skew-symmetric S has -iS Hermitian: real frequencies and orthonormal vectors.
    frequency, vectors = torch.linalg.eigh(-1j * skew)
    return torch.complex(torch.full_like(frequency, -0.5), frequency), vectors


def legs_nplr(size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return HiPPO-LegS as a diagonal less a product of rank one, in the basis of the normal part's eigenvectors.

    ``V^* A V = diag(Lambda) - P P^*``; of each conjugate pair the member with a positive imaginary part is given.

    Args:
        size: Order N, even.

    Returns:
        Lambda, P and ``V^* B``, each (N / 2,) complex128.

    Source:
        Gu et al., S4 (2022), theorem 1 and appendix C.1; P on both sides: Goel et al., SaShiMi (2022), section 4.2.
    """
    eigenvalues, vectors = hippo_normal(size)
    half = slice(size // 2, None)
    into = vectors[:, half].mH @ torch.stack([_root(size) / 2**0.5, _root(size)], 1).to(vectors.dtype)
    return eigenvalues[half], into[:, 0], into[:, 1]


def diagonal_poles(init: str, pairs: int) -> Tensor:
    """Return the poles that a diagonal state space starts with.

    ``lin``: ``-1/2 + i pi n``; ``inv``: ``-1/2 + i (N/pi) (N/(2n + 1) - 1)``; ``legs``: :func:`hippo_normal`; N = 2 *
    pairs.

    Args:
        init: ``lin``, ``inv`` or ``legs``.
        pairs: Conjugate pairs; the member with the imaginary part >= 0 is given.

    Returns:
        (pairs,) complex128.

    Source:
        Gu et al., On the parameterization and initialization of diagonal state space models (2022), section 4.
    """
    n, size = torch.arange(pairs, dtype=torch.float64), 2 * pairs
    if init == "legs":
        return hippo_normal(size)[0][pairs:]
    frequency = torch.pi * n if init == "lin" else size / torch.pi * (size / (2 * n + 1) - 1)
    return torch.complex(torch.full_like(n, -0.5), frequency)


def _root(size: int) -> Tensor:
    return (2 * torch.arange(size, dtype=torch.float64) + 1).sqrt()
