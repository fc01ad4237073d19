"""conv_scan: ``x_t = a x_{t-1} + (B * u)_t`` at every pixel of a clip, the recurrence of convolutional state spaces."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import COMPLEX, FLOATS, check_device, check_dtype, check_length, check_shape
from ..linear_scan import linear_scan

__all__ = ["conv_scan"]

_OP = "conv_scan"


def conv_scan(
    a: Tensor,
    bu: Tensor,
    *,
    initial_state: Tensor | None = None,
    reset: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Run a convolutional state space's recurrence over the frames of a clip.

    ``x_t = a_t * x_{t-1} + bu_t``, elementwise: the state's own kernel is 1 x 1 and diagonal, the input's convolution
    has been applied to all frames at once. It is :func:`linear_scan` over frames and has no kernel of its own: a decay
    (P,) meets every frame from one frame's worth of memory, and its gradient is summed over time as it is found; a
    decay that changes with time is written out at every pixel.

    Args:
        a: Decay of each state, (P,), or (B, L, H, W, P) with any of the first four axes 1. bu's dtype.
        bu: Convolved input, (B, L, H, W, P) complex64, complex128, float32, float64, bfloat16 or float16.
        initial_state: State before the first frame, (B, H, W, P); zero if None.
        reset: (B, L) bool; where True the state before that frame counts as zero: the first frame of each clip of a
            packed batch.
        backend: Force ``triton``, ``cpu``, ``chunked`` or ``reference``; None chooses by device.

    Returns:
        x: All states, (B, L, H, W, P), bu's dtype.
        final_state: The state after the last frame, (B, H, W, P); float32 for half types, else bu's dtype.

    Raises:
        TypeError: A dtype is not supported, or a and bu differ in it.
        ValueError: Shapes or devices do not fit, there is no frame, or a is not finite (seen by ``cpu``, and by
            ``chunked`` on the CPU, which name its place among the H W P entries of a frame).
        BackendError: A forced backend cannot serve the call.

    Source:
        Smith et al., Convolutional state space models for long-range spatiotemporal modeling (2023), section 3.

    Example:
        >>> import torch
        >>> from scanweave.kernels import conv_scan
        >>> x, state = conv_scan(torch.tensor([0.5j]), torch.ones(1, 3, 1, 1, 1, dtype=torch.complex64))
        >>> x.flatten().tolist()
        [(1+0j), (1+0.5j), (0.75+0.5j)]
    """
    _check(a, bu, initial_state, reset)
    return linear_scan(a, bu, initial_state=initial_state, reset=reset, backend=backend)


def _check(a: Tensor, bu: Tensor, initial_state: Tensor | None, reset: Tensor | None) -> None:
    check_dtype(_OP, "bu", bu, FLOATS + COMPLEX)
    if bu.dim() != 5:
        raise ValueError(f"{_OP}: bu has shape {tuple(bu.shape)}, expected (B, L, H, W, P)")
    check_length(_OP, "bu", bu)
    check_dtype(_OP, "a", a, (bu.dtype,))
    shape, states = tuple(bu.shape), bu.shape[4]
    whole = a.dim() == 5 and all(have in (1, wanted) for have, wanted in zip(a.shape[:4], shape, strict=False))
    if a.shape[-1:] != (states,) or not (whole or a.dim() == 1):
        raise ValueError(
            f"{_OP}: a has shape {tuple(a.shape)}, expected (P,) = ({states},), or bu's {shape} with any of the first "
            "four axes 1"
        )
    if initial_state is not None:
        check_dtype(_OP, "initial_state", initial_state, COMPLEX if bu.is_complex() else FLOATS)
        check_shape(_OP, "initial_state", initial_state, (shape[0], *shape[2:]), "(B, H, W, P)")
    if reset is not None:
        check_dtype(_OP, "reset", reset, (torch.bool,))
        check_shape(_OP, "reset", reset, shape[:2], "(B, L)")
    check_device(_OP, bu, {"a": a, "initial_state": initial_state, "reset": reset})
