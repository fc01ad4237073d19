"""Gated DeltaNet: the delta rule with a decaying state."""

from __future__ import annotations

from ..registry import register_mixer
from .deltanet import DeltaMixer, Eigenvalues


@register_mixer("gated_deltanet")
class GatedDeltaNet(DeltaMixer):
    """The delta rule with Mamba-2's decay and a gated output.

    ``S <- alpha_t S_{t-1}``, ``S_t = S + beta_t k_t (v_t - S^T k_t)^T`` with
    ``alpha = exp(-exp(A_log) softplus(W_a x + dt_bias))``; see :class:`~.deltanet.DeltaMixer` for the block around it.

    Args:
        dim: Features of the input and of the output.
        head_dim: Width of a head's queries and keys; None is the largest divisor of their width that is at most 64.
        expand_k: Width of all heads' keys in multiples of dim, rounded down, at least one feature.
        expand_v: Width of a head's values in multiples of head_dim.
        d_conv: Taps of the convolutions on queries, keys and values.
        eigenvalues: ``positive``: beta in (0, 1), or ``signed``: beta in (0, 2).

    Raises:
        ConfigError: head_dim does not divide the keys' width, or an argument is out of its range.

    Source:
        Yang, Kautz and Hatamizadeh, Gated delta networks: improving Mamba2 with delta rule (2024), sections 3.1 and
        3.4; the widths, 6 dim^2 weights in all, and initial values are the authors' release's.
    """

    def __init__(
        self,
        dim: int,
        head_dim: int | None = None,
        expand_k: float = 0.75,
        expand_v: float = 2.0,
        d_conv: int = 4,
        eigenvalues: Eigenvalues = "positive",
    ) -> None:
        super().__init__(
            dim,
            width=max(1, int(expand_k * dim)),
            head_dim=head_dim,
            expand_v=expand_v,
            d_conv=d_conv,
            householders=1,
            gated=True,
            eigenvalues=eigenvalues,
        )
