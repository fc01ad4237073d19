"""prefix_attention's definition: softmax attention over all steps so far, as a plain loop over time."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import state_dtype


def prefix_attention_reference(
    scores: Tensor, v: Tensor, initial: tuple[Tensor, Tensor, Tensor], reset: Tensor | None
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Average the values so far with weights ``exp(scores)``, step by step.

    The state holds ``a = sum e^(s_i - m) v_i``, ``c = sum e^(s_i - m)`` and ``m = max s_i``: a step takes the new
    maximum and rescales both sums, so that no exponential exceeds 1; ``o_t = a_t / c_t``, 0 while all scores are -inf.

    Args:
        scores: Logarithms of the weights (B, L, H); -inf for a masked step.
        v: Values (B, L, H, V).
        initial: a (B, H, V), c (B, H) and m (B, H) before the first step.
        reset: (B, L) bool; where True the state before that step counts as empty.

    Returns:
        o (B, L, H, V) in v's dtype and the state after the last step.

    Source:
        Feng et al., Attention as an RNN (2024), section 3.1, equations 2 to 4.
    """
    dtype = state_dtype(v.dtype)
    a, c, m = initial
    outputs = []
    for t, (s_t, v_t) in enumerate(zip(scores.to(dtype).unbind(1), v.to(dtype).unbind(1), strict=True)):
        if reset is not None:
            starts = reset[:, t, None]
            a, c, m = (
                a.masked_fill(starts.unsqueeze(-1), 0),
                c.masked_fill(starts, 0),
                m.masked_fill(starts, -torch.inf),
            )
        largest = torch.maximum(m, s_t)
        level = largest.masked_fill(torch.isneginf(largest), 0)
        past, now = torch.exp(m - level), torch.exp(s_t - level)
        seen = v_t.masked_fill(torch.isneginf(s_t).unsqueeze(-1), 0)
        a, c, m = past.unsqueeze(-1) * a + now.unsqueeze(-1) * seen, past * c + now, largest
        outputs.append(a / c.masked_fill(torch.isneginf(m), 1).unsqueeze(-1))
    return torch.stack(outputs, 1).to(v.dtype), (a, c, m)
