"""From ``x' = A x + B u`` to ``x_t = Abar x_{t-1} + Bbar u_t``, for steps of a learned length."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ..errors import ConfigError

Method = Literal["zoh", "bilinear"]


def check_method(who: str, method: str) -> None:
    """Refuse a discretisation that is not known.

    Raises:
        ConfigError: method is neither ``zoh`` nor ``bilinear``.
    """
    if method not in ("zoh", "bilinear"):
        raise ConfigError(f"{who}: method is {method!r}, expected zoh or bilinear")


def discretise_diagonal(poles: Tensor, dt: Tensor, method: Method) -> tuple[Tensor, Tensor]:
    """Discretise diagonal systems whose B is 1.

    With ``z = dt A``, zero-order hold: ``Abar = e^z``, ``Bbar = (e^z - 1) / A``; bilinear:
    ``Abar = (1 + z/2) / (1 - z/2)``, ``Bbar = dt / (1 - z/2)``.

    Args:
        poles: A (C, N) complex.
        dt: (C, 1) real, > 0.
        method: ``zoh`` or ``bilinear``.

    Returns:
        log(Abar) and Bbar, both (C, N) complex: powers are products with the logarithm.

    Source:
        Gu et al., On the parameterization and initialization of diagonal state space models (2022), section 3.1.
    """
    z = dt * poles
    if method == "zoh":
        return z, (z.exp() - 1) / poles
    return ((1 + z / 2) / (1 - z / 2)).log(), dt / (1 - z / 2)


def discretise_dense(A: Tensor, B: Tensor, dt: Tensor, method: Method) -> tuple[Tensor, Tensor]:
    """Discretise dense systems.

    Zero-order hold: ``exp(dt [[A, B], [0, 0]]) = [[Abar, Bbar], [0, 1]]``; bilinear:
    ``Abar = (1 - dt A/2)^-1 (1 + dt A/2)``, ``Bbar = (1 - dt A/2)^-1 dt B``.

    Args:
        A: (C, N, N).
        B: (C, N).
        dt: (C,), > 0.
        method: ``zoh`` or ``bilinear``.

    Returns:
        Abar (C, N, N) and Bbar (C, N).

    Source:
        Gu et al., LSSL (2021), section 2 and appendix B.
    """
    size = A.shape[-1]
    joined = dt[:, None, None] * torch.cat([A, B.unsqueeze(-1)], -1)
    if method == "zoh":
        joined = torch.linalg.matrix_exp(torch.nn.functional.pad(joined, (0, 0, 0, 1)))[:, :size]
    else:
        eye = torch.eye(size, dtype=A.dtype, device=A.device)
        half = joined[..., :size] / 2
        joined = torch.linalg.solve(eye - half, torch.cat([eye + half, joined[..., size:]], -1))
    return joined[..., :size], joined[..., size]
