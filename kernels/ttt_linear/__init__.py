"""ttt_linear: a state that is itself a linear model, trained on the sequence while it is read."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from ..checks import check_device, check_dtype, check_shape, state_dtype
from ..cpu import refuses as cpu_refuses
from ..dispatch import Kernel, always, register_kernel, select
from ..library import define_op, gradients_of
from ..matrix_state import check_arguments, check_query, gate_dtypes
from . import chunked, cpu
from .reference import TTTState, check_position, places, saved_slots, ttt_linear_reference

__all__ = ["TTTState", "ttt_linear"]


def ttt_linear(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    eta: Tensor,
    W0: Tensor,
    b0: Tensor,
    ln_weight: Tensor,
    ln_bias: Tensor,
    *,
    mini_batch: int = 16,
    epsilon: float = 1e-6,
    initial_state: TTTState | tuple[Tensor, Tensor, Tensor, Tensor, Tensor] | None = None,
    reset: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, TTTState]:
    """Train a linear model per head on the keys and values of axis 1 while queries read it.

    The inner model is ``f(x; W, b) = x + LN(x W + b)``, its loss at step t ``l_t(W, b) = |f(k_t; W, b) - v_t|^2 / 2``.
    With ``W', b'`` the model at the beginning of t's mini-batch and s running over the mini-batch's steps up to t,
    ``W_t = W' - sum_s eta_s dl_s/dW(W', b')``, ``b_t`` likewise, and ``o_t = f(q_t; W_t, b_t)``. Mini-batches are
    counted from each sequence's own first step.

    Args:
        q: Queries, (B, L, H, D) float32, float64, bfloat16 or float16.
        k: Keys, (B, L, H, D), q's dtype.
        v: Values, (B, L, H, D), q's dtype.
        eta: Step size of each step's gradient, (B, L, H). q's dtype or float32.
        W0: Weights before the first step, (H, D, D). q's dtype or the state's, as b0, ln_weight and ln_bias.
        b0: Bias before the first step, (H, D).
        ln_weight: Scale of the layer norm, (H, D).
        ln_bias: Bias of the layer norm, (H, D).
        mini_batch: Steps whose gradients are taken at the same weights; 1 is online gradient descent.
        epsilon: Added to the variance in the layer norm.
        initial_state: State before the first step, as a call returned it; it may be in the midst of a mini-batch.
            W0, b0 and position 0 if None.
        reset: (B, L) bool; where True a sequence starts, from W0 and b0 and with a new mini-batch: the first step of
            each sequence of a packed batch.
        backend: Force ``triton``, ``cpu``, ``chunked`` or ``reference``; None chooses by device.

    Returns:
        o: (B, L, H, D), q's dtype.
        final_state: The state after the last step; float32 for half types, else q's dtype.

    Raises:
        TypeError: A dtype is not supported or does not fit q's.
        ValueError: Shapes or devices do not fit, the length is 0, mini_batch is below 1, or (checked on the CPU) a
            position lies outside of a mini-batch.
        BackendError: A forced backend cannot serve the call.

    Source:
        Sun et al., Learning to (learn at test time): RNNs with expressive hidden states (2024), sections 2.3 to 2.7 and
        the dual form of its appendix A. The paper's factor of the step size that depends on the reading step's place
        in its mini-batch is left out: eta belongs to the step whose gradient it scales, wherever that is read.

    Example:
        >>> import torch
        >>> from scanweave.kernels import ttt_linear
        >>> x = torch.tensor([1.0, -1.0]).expand(1, 3, 1, 2)
        >>> zero, one = torch.zeros(1, 2), torch.ones(1, 2)
        >>> o, state = ttt_linear(x, x, x, one[:, :1].expand(1, 3, 1), torch.eye(2)[None], zero, one, zero)
        >>> state.position.tolist()
        [3]
    """
    op = "ttt_linear"
    check_query(op, q)
    if mini_batch < 1:
        raise ValueError(f"{op}: mini_batch is {mini_batch}, expected at least 1")
    _check(q, k, v, eta, (W0, b0, ln_weight, ln_bias), reset)
    state, position = _state(q, initial_state)
    weights = torch.cat([W0, b0.unsqueeze(1)], 1)
    arguments = (q, k, v, eta, weights, ln_weight, ln_bias, state, position, reset, mini_batch, epsilon)
    chosen = select(op, q, backend)
    if chosen == "reference":
        check_position(position, mini_batch)
        o, final = ttt_linear_reference(*arguments)
    else:
        o, final, _ = _op(*arguments, False, chosen)
    base, update = final.unbind(2)
    place = _last_position(q, position, reset, mini_batch)
    return o, TTTState(base[..., :-1, :], base[..., -1, :], update[..., :-1, :], update[..., -1, :], place)


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    eta: Tensor,
    parameters: tuple[Tensor, Tensor, Tensor, Tensor],
    reset: Tensor | None,
) -> None:
    shape, (heads, width), dtypes = tuple(q.shape), q.shape[2:], (state_dtype(q.dtype), q.dtype)
    W0, b0, ln_weight, ln_bias = parameters
    check_dtype("ttt_linear", "W0", W0, dtypes)
    arguments = (
        ("k", k, shape, "(B, L, H, D)", (q.dtype,)),
        ("v", v, shape, "(B, L, H, D)", (q.dtype,)),
        ("eta", eta, shape[:3], "(B, L, H)", gate_dtypes(q)),
        ("W0", W0, (heads, width, width), "(H, D, D)", dtypes),
        ("b0", b0, (heads, width), "(H, D)", (W0.dtype,)),
        ("ln_weight", ln_weight, (heads, width), "(H, D)", dtypes),
        ("ln_bias", ln_bias, (heads, width), "(H, D)", dtypes),
    )
    check_arguments("ttt_linear", q, arguments, width, None, reset)


def _state(q: Tensor, given: tuple[Tensor, ...] | None) -> tuple[Tensor | None, Tensor | None]:
    """Return the checked initial state as one tensor (B, H, 2, D + 1, D), and its positions."""
    if given is None:
        return None, None
    if not isinstance(given, tuple) or len(given) != 5:
        raise TypeError(f"ttt_linear: initial_state is a {type(given).__name__}, expected the five tensors of TTTState")
    batch, _, heads, width = q.shape
    matrix, vector = ((batch, heads, width, width), "(B, H, D, D)"), ((batch, heads, width), "(B, H, D)")
    dtype, layouts = state_dtype(q.dtype), (matrix, vector, matrix, vector, ((batch,), "(B,)"))
    for name, tensor, (shape, layout) in zip(TTTState._fields, given, layouts, strict=True):
        allowed = (torch.int64,) if name == "position" else (dtype, q.dtype)
        check_dtype("ttt_linear", f"initial_state.{name}", tensor, allowed)
        check_shape("ttt_linear", f"initial_state.{name}", tensor, shape, layout)
        check_device("ttt_linear", q, {f"initial_state.{name}": tensor})
    W, b, W_update, b_update, position = given
    halves = [torch.cat([x.to(dtype), y.to(dtype).unsqueeze(2)], 2) for x, y in ((W, b), (W_update, b_update))]
    return torch.stack(halves, 2), position


def _last_position(q: Tensor, position: Tensor | None, reset: Tensor | None, mini_batch: int) -> Tensor:
    """Return how many steps the last mini-batch of each row holds, 0 where it is full."""
    return (places(q, position, reset, mini_batch)[:, -1] + 1) % mini_batch


def _fake(q: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    weights, mini_batch, save = others[3], others[9], others[11]
    dtype, slots = state_dtype(q.dtype), saved_slots(q.shape[1], mini_batch) if save else 0
    final = q.new_empty((q.shape[0], q.shape[2], 2, *weights.shape[1:]), dtype=dtype)
    return q.new_empty(q.shape), final, q.new_empty((q.shape[0], slots, *weights.shape), dtype=dtype)


def _fake_backward(*saved: Any) -> tuple[Tensor, ...]:
    before, like = saved[12], [x.new_empty(x.shape) for x in saved[:7]]
    batch, _, heads, *shape = before.shape
    return *like, before.new_empty(0 if saved[7] is None else (batch, heads, 2, *shape))


def _gradients(*saved: Any) -> tuple[Tensor | None, ...]:
    """Return the gradients by differentiating the reference form: for a gradient of the gradient."""
    arguments, (_, do, dfinal) = saved[:12], saved[12:]
    return gradients_of(ttt_linear_reference, arguments, (do, dfinal))[:8]


_ARGUMENTS = (
    "Tensor q, Tensor k, Tensor v, Tensor eta, Tensor weights, Tensor ln_weight, Tensor ln_bias, "
    "Tensor? initial_state, Tensor? position, Tensor? reset, int mini_batch, float epsilon, "
)
_op = define_op(
    "ttt_linear",
    schema=f"({_ARGUMENTS}bool save, str backend) -> (Tensor, Tensor, Tensor)",
    backward_schema=(
        f"({_ARGUMENTS}Tensor before, Tensor? do, Tensor? dfinal, str backend) -> ({', '.join(['Tensor'] * 8)})"
    ),
    fake=_fake,
    fake_backward=_fake_backward,
    saved=lambda arguments, outputs: (*arguments[:12], outputs[2]),
    differentiable=tuple(range(8)),
    batched=(0, 1, 2, 3, 7, 8, 9),
    twice=_gradients,
    extras=1,
)
register_kernel("ttt_linear", "reference", Kernel(ttt_linear_reference, None, always))
register_kernel("ttt_linear", "chunked", Kernel(chunked.forward, chunked.backward, always))
register_kernel("ttt_linear", "cpu", Kernel(cpu.forward, cpu.backward, cpu_refuses))
if find_spec("triton"):
    from . import triton

    register_kernel("ttt_linear", "triton", Kernel(triton.forward, triton.backward, triton.refuses))
