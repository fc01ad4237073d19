"""prefix_attention: softmax attention of one query over every prefix, in memory that does not grow."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..checks import FLOATS, check_device, check_dtype, check_length, check_shape, state_dtype
from ..dispatch import select
from ..wkv4 import WKV4State, wkv4
from .reference import prefix_attention_reference

__all__ = ["PrefixState", "prefix_attention"]

_OP = "prefix_attention"
#: The score of a masked step: far below any other, and such that differences of two are numbers.
_MASKED = -1e30


class PrefixState(NamedTuple):
    """The weighted sum of values (B, H, V) and of weights (B, H), both scaled by ``exp(-maximum)``; maximum (B, H).

    Before any step 0, 0 and -inf.
    """

    numerator: Tensor
    denominator: Tensor
    maximum: Tensor


def prefix_attention(
    scores: Tensor,
    v: Tensor,
    *,
    initial_state: PrefixState | tuple[Tensor, Tensor, Tensor] | None = None,
    reset: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, PrefixState]:
    """Attend to all steps so far, at every step: attention of a query that does not change, as a recurrence.

    ``o_t = sum_{i<=t} e^(s_i) v_i / sum_{i<=t} e^(s_i)``, each head by itself. It is :func:`wkv4` without decay and
    bonus, a head's score standing for each of its channels, and has no kernel of its own.

    Args:
        scores: s, the query's products with the keys, (B, L, H), v's dtype; finite, or -inf for a masked step, which
            counts for nothing whatever its value. Before any other step o is 0.
        v: Values, (B, L, H, V) float32, float64, bfloat16 or float16.
        initial_state: State before the first step, as a call returned it. Empty if None.
        reset: (B, L) bool; where True the state before that step counts as empty: the first step of each sequence of a
            packed batch.
        backend: Force ``triton``, ``cpu``, ``chunked`` or ``reference``; None chooses by device.

    Returns:
        o: (B, L, H, V), v's dtype.
        final_state: The state after the last step; float32 for half types, else v's dtype.

    Raises:
        TypeError: A dtype is not supported or does not fit v's, or ``initial_state`` is not three tensors.
        ValueError: Shapes or devices do not fit, or the length is 0.
        BackendError: A forced backend cannot serve the call.

    Source:
        Feng et al., Attention as an RNN (2024), sections 3.1 and 3.2.

    Example:
        >>> import torch
        >>> from scanweave.kernels import prefix_attention
        >>> v = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)
        >>> o, state = prefix_attention(torch.zeros(1, 3, 1), v)
        >>> [round(x, 4) for x in o.flatten().tolist()]
        [1.0, 0.5, 0.3333]
    """
    _check(scores, v, reset)
    state = _state(v, initial_state)
    chosen = select("wkv4", v.flatten(2), backend)
    if chosen == "reference":
        o, final = prefix_attention_reference(scores, v, state, reset)
        return o, PrefixState(*final)
    batch, _, heads, width = v.shape
    none = v.new_zeros(heads * width)
    before = None
    if initial_state is not None:
        parts = state.numerator, state.denominator.unsqueeze(-1), state.maximum.unsqueeze(-1)
        before = WKV4State(*(part.expand(batch, heads, width).flatten(1) for part in parts))
    # Masked steps weigh 1 until a score appears; then their weight underflows, and their values are 0 all along.
    masked, lowest = torch.isneginf(scores), max(_MASKED, torch.finfo(v.dtype).min)
    every = scores.masked_fill(masked, lowest).unsqueeze(-1).expand_as(v).flatten(2)
    values = v.masked_fill(masked.unsqueeze(-1), 0).flatten(2)
    o, (a, c, m) = wkv4(every, values, none, none, initial_state=before, reset=reset, backend=chosen)
    a, c, m = (part.unflatten(1, (heads, width)) for part in (a, c, m))
    empty = m[..., 0] <= lowest
    final = PrefixState(a, c[..., 0].masked_fill(empty, 0), m[..., 0].masked_fill(empty, -torch.inf))
    return o.unflatten(2, (heads, width)), final


def _check(scores: Tensor, v: Tensor, reset: Tensor | None) -> None:
    check_dtype(_OP, "v", v, FLOATS)
    if v.dim() != 4 or v.shape[3] == 0:
        raise ValueError(f"{_OP}: v has shape {tuple(v.shape)}, expected (B, L, H, V) with V at least 1")
    check_length(_OP, "v", v)
    check_dtype(_OP, "scores", scores, (v.dtype,))
    check_shape(_OP, "scores", scores, tuple(v.shape[:3]), "(B, L, H)")
    if reset is not None:
        check_dtype(_OP, "reset", reset, (torch.bool,))
        check_shape(_OP, "reset", reset, tuple(v.shape[:2]), "(B, L)")
    check_device(_OP, v, {"scores": scores, "reset": reset})


def _state(v: Tensor, given: tuple[Tensor, Tensor, Tensor] | None) -> PrefixState:
    """Return the checked initial state in the state's dtype, the empty one if None."""
    dtype, (batch, _, heads, width) = state_dtype(v.dtype), v.shape
    if given is None:
        numerator, denominator = (
            v.new_zeros((batch, heads, width), dtype=dtype),
            v.new_zeros((batch, heads), dtype=dtype),
        )
        return PrefixState(numerator, denominator, torch.full_like(denominator, -torch.inf))
    if not isinstance(given, tuple) or len(given) != 3:
        raise TypeError(f"{_OP}: initial_state is a {type(given).__name__}, expected the three tensors of PrefixState")
    shapes = (batch, heads, width), (batch, heads), (batch, heads)
    layouts = "(B, H, V)", "(B, H)", "(B, H)"
    for field, part, shape, layout in zip(PrefixState._fields, given, shapes, layouts, strict=True):
        name = f"initial_state.{field}"
        check_dtype(_OP, name, part, (dtype, v.dtype))
        check_shape(_OP, name, part, shape, layout)
        check_device(_OP, v, {name: part})
    return PrefixState(*(part.to(dtype) for part in given))
