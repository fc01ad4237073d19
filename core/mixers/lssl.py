"""LSSL: a linear state space with a full matrix per feature."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..parameters import undecayed
from ..registry import register_mixer
from ..ssm.discretise import Method, check_method, discretise_dense
from ..ssm.hippo import legs, legt
from ..ssm.layer import StateSpace, log_steps, steps
from ..ssm.system import Dense, System, wide_dtype


@register_mixer("lssl")
class LSSL(StateSpace):
    """State space with a dense HiPPO matrix, discretised by a step of each feature's own.

    ``x' = A x + B u``, ``y = C x + D u``; then GELU and a linear map. Its kernel costs, for each feature, about
    ``N^3 log L`` operations for the squares of the matrix, ``2 N^2 sqrt(L)`` for the powers and ``N L`` for their
    products, beside the convolution.

    Args:
        dim: Features of the input and of the output.
        d_state: State size N of each feature.
        measure: ``legs`` (all of the past) or ``legt`` (a window of 1 / dt steps).
        groups: Matrices; features of a group share one. A divisor of dim.
        learned: Whether A and B are trained. Nothing keeps a trained A stable.
        method: Discretisation, ``bilinear`` or ``zoh``.
        dt_min: Smallest step at the start; steps are log-uniform.
        dt_max: Largest step at the start.

    Raises:
        ConfigError: groups does not divide dim, or measure or method is not one of those named.

    Source:
        Gu et al., Combining recurrent, convolutional, and continuous-time models with linear state-space layers
        (2021), sections 3 and 4.
    """

    A: Tensor
    B: Tensor

    def __init__(
        self,
        dim: int,
        d_state: int = 32,
        measure: Literal["legs", "legt"] = "legs",
        groups: int = 1,
        learned: bool = False,
        method: Method = "bilinear",
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
    ) -> None:
        super().__init__(dim, (dim, d_state), gated=False)
        measures = {"legs": legs, "legt": legt}
        if measure not in measures:
            raise ConfigError(f"LSSL: measure is {measure!r}, expected legs or legt")
        if d_state < 1 or groups < 1 or dim % groups:
            raise ConfigError(
                f"LSSL: d_state is {d_state} and groups is {groups}, expected at least 1 and a divisor of dim = {dim}"
            )
        check_method("LSSL", method)
        self.method = method
        for name, value in zip("AB", measures[measure](d_state), strict=True):
            copies = value.float().repeat(groups, *[1] * value.dim())
            if learned:
                self.register_parameter(name, undecayed(copies))
            else:
                self.register_buffer(name, copies)
        self.C = nn.Parameter(torch.randn(dim, d_state) / d_state**0.5)
        self.log_dt = log_steps(dim, dt_min, dt_max)

    def system(self) -> System:
        """Return the discrete system of the present parameters."""
        wide = wide_dtype(self.C.device)
        A, B = (part.to(wide).repeat_interleave(self.dim // len(part), 0) for part in (self.A, self.B))
        return Dense(*discretise_dense(A, B, steps(self.log_dt).squeeze(-1), self.method), self.C.to(wide))
