"""S4D: a diagonal state space per feature."""

from __future__ import annotations

from ..registry import register_mixer
from ..ssm.discretise import Method
from ..ssm.layer import DiagonalStateSpace, Init, StateSpace
from ..ssm.system import System


@register_mixer("s4d")
class S4D(StateSpace):
    """Diagonal complex state space per feature, in parallel a convolution with a long kernel.

    ``x' = A x + u``, ``y = 2 Re(C x) + D u`` on each feature with its own step dt; then GELU and a gated linear map.

    Args:
        dim: Features of the input and of the output.
        d_state: State size of each feature, even; half as many conjugate pairs are kept.
        init: Poles at the start: ``lin`` (``-1/2 + i pi n``), ``inv`` or ``legs`` (HiPPO-LegS's diagonal part).
        method: Discretisation, ``zoh`` or ``bilinear``.
        dt_min: Smallest step at the start; steps are log-uniform.
        dt_max: Largest step at the start.

    Raises:
        ConfigError: d_state is odd, or init or method is not one of those named.

    Source:
        Gu et al., On the parameterization and initialization of diagonal state space models (2022).
    """

    def __init__(
        self,
        dim: int,
        d_state: int = 64,
        init: Init = "lin",
        method: Method = "zoh",
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
    ) -> None:
        super().__init__(dim, (dim, d_state // 2, 2), gated=True)
        self.ssm = DiagonalStateSpace("S4D", dim, d_state, init, method, dt_min, dt_max)

    def system(self) -> System:
        """Return the discrete system of the present parameters."""
        return self.ssm.system()
