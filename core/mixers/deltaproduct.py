"""DeltaProduct: several delta-rule corrections in each step."""

from __future__ import annotations

from ..registry import register_mixer
from .deltanet import DeltaMixer, Eigenvalues


@register_mixer("deltaproduct")
class DeltaProduct(DeltaMixer):
    """The delta rule with several corrections a step, whose transition is a product of generalised Householder maps.

    ``S <- (I - beta_i k_i k_i^T) S + beta_i k_i v_i^T`` for i = 1 ... householders in each step, then
    ``o_t = S^T q_t / sqrt(K)``; see :class:`~.deltanet.DeltaMixer` for the block around it. With signed eigenvalues two
    corrections make any rotation in a plane, and n of them any permutation of n + 1 things.

    Args:
        dim: Features of the input and of the output.
        head_dim: Features of a head; None is the largest divisor of dim that is at most 64.
        householders: Corrections a step, n_h, each with a key, value and beta of its own.
        gated: Gated DeltaProduct: the state decays once a step and the output is gated, as in Gated DeltaNet.
        expand_v: Width of a head's values in multiples of its keys'.
        d_conv: Taps of the convolutions on queries, keys and values.
        eigenvalues: ``signed``: beta in (0, 2), or ``positive``: beta in (0, 1).

    Raises:
        ConfigError: head_dim does not divide dim, or an argument is out of its range.

    Source:
        Siems et al., DeltaProduct: improving state-tracking in linear RNNs via Householder products (2025), section 3.
    """

    def __init__(
        self,
        dim: int,
        head_dim: int | None = None,
        householders: int = 2,
        gated: bool = False,
        expand_v: float = 1.0,
        d_conv: int = 4,
        eigenvalues: Eigenvalues = "signed",
    ) -> None:
        super().__init__(
            dim,
            width=dim,
            head_dim=head_dim,
            expand_v=expand_v,
            d_conv=d_conv,
            householders=householders,
            gated=gated,
            eigenvalues=eigenvalues,
        )
