"""S4: a structured state space per feature."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..parameters import undecayed
from ..registry import register_mixer
from ..ssm.hippo import legs_nplr
from ..ssm.layer import StateSpace, as_complex, as_pairs, count_pairs, log_steps, steps
from ..ssm.nplr import NPLR
from ..ssm.system import System, wide_dtype


@register_mixer("s4")
class S4(StateSpace):
    """State space per feature whose matrix is a diagonal less a product of rank one, from HiPPO-LegS.

    ``x' = (Lambda - P P^*) x + B u``, ``y = 2 Re(C x) + D u``, bilinear with a step dt per feature; then GELU and a
    gated linear map. The real part of Lambda is ``-exp(log_A_real)``, so that the system stays stable. C is the
    system's own at every length, so that powers of the full matrix are needed for either kernel (squares, N^3 log L
    operations a feature): from them the kernel is a product, N L multiplications; the paper's way truncates C by them
    and goes over N L divisions of complex numbers.

    Args:
        dim: Features of the input and of the output.
        d_state: State size of each feature, even; half as many conjugate pairs are kept.
        kernel: ``powers`` (products of powers) or ``cauchy`` (the paper's: generating function, Cauchy sums and
            Woodbury's identity). The same numbers.
        dt_min: Smallest step at the start; steps are log-uniform.
        dt_max: Largest step at the start.

    Raises:
        ConfigError: d_state is odd, or kernel is neither of the two.

    Source:
        Gu et al., Efficiently modeling long sequences with structured state spaces (2022); ``P P^*``: Goel et al.,
        SaShiMi (2022), section 4.2.
    """

    def __init__(
        self,
        dim: int,
        d_state: int = 64,
        kernel: Literal["powers", "cauchy"] = "powers",
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
    ) -> None:
        if kernel not in ("powers", "cauchy"):
            raise ConfigError(f"S4: kernel is {kernel!r}, expected powers or cauchy")
        pairs = count_pairs("S4", d_state)
        super().__init__(dim, (dim, pairs, 2), gated=True)
        self.cauchy = kernel == "cauchy"
        poles, P, B = (part.expand(dim, -1) for part in legs_nplr(d_state))
        self.log_A_real = undecayed((-poles.real).log().float())
        self.A_imag = undecayed(poles.imag.float().clone())
        self.P = undecayed(as_pairs(P))
        self.B = undecayed(as_pairs(B))
        self.C = nn.Parameter(as_pairs(torch.randn(dim, pairs, dtype=torch.complex64)))
        self.log_dt = log_steps(dim, dt_min, dt_max)

    def system(self) -> System:
        """Return the discrete system of the present parameters."""
        P, B, C = (as_complex(part) for part in (self.P, self.B, self.C))
        return NPLR(self.poles(), P, B, C, steps(self.log_dt), self.cauchy)

    def poles(self) -> Tensor:
        """Return Lambda (dim, d_state / 2), complex."""
        real, imaginary = (part.to(wide_dtype(part.device)) for part in (self.log_A_real, self.A_imag))
        return torch.complex(-real.exp(), imaginary)
