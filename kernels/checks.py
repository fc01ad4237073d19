"""What every op asks of its arguments, in one place: shapes, dtypes, devices, lengths."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
COMPLEX = (torch.complex64, torch.complex128)


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which an op keeps its state: float32 for half types, else the tensor's own."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def check_shape(op: str, name: str, tensor: Tensor, expected: tuple[int, ...], layout: str) -> None:
    """Raise ValueError unless ``tensor`` has the expected shape; ``layout`` names the axes, as ``(B, L, C)``."""
    if tuple(tensor.shape) != expected:
        raise ValueError(f"{op}: {name} has shape {tuple(tensor.shape)}, expected {layout} = {expected}")


def check_dtype(op: str, name: str, tensor: Tensor, allowed: tuple[torch.dtype, ...]) -> None:
    """Raise TypeError unless ``tensor`` is a tensor of one of the allowed dtypes."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{op}: {name} is a {type(tensor).__name__}, expected a tensor")
    if tensor.dtype not in allowed:
        names = ", ".join(str(d).removeprefix("torch.") for d in allowed)
        raise TypeError(f"{op}: {name} has dtype {str(tensor.dtype).removeprefix('torch.')}, expected one of {names}")


def check_device(op: str, first: Tensor, others: Mapping[str, Tensor | None]) -> None:
    """Raise ValueError unless every tensor lies on the device of the first."""
    for name, tensor in others.items():
        if tensor is not None and tensor.device != first.device:
            raise ValueError(f"{op}: {name} is on {tensor.device}, expected {first.device} as the first tensor")


def check_length(op: str, name: str, tensor: Tensor) -> None:
    """Raise ValueError for a sequence without a step."""
    if tensor.shape[1] == 0:
        raise ValueError(f"{op}: {name} has length 0 along axis 1 (L); a scan needs at least one step")


def has_values(tensor: Tensor) -> bool:
    """Whether to look at a tensor's values: on a GPU that would wait for it, and a tensor being traced has none."""
    return tensor.device.type == "cpu" and type(tensor) in (Tensor, torch.nn.Parameter)


def check_finite(op: str, name: str, tensor: Tensor) -> None:
    """Raise ValueError naming the first non-finite entry of ``tensor``, if there is one."""
    bad = torch.isfinite(tensor).logical_not_()
    if bad.any():
        place = tuple(int(i) for i in bad.nonzero()[0])
        raise ValueError(
            f"{op}: {name} is {tensor[place].item()} at {place} ({int(bad.sum())} non-finite of {tensor.numel()}); "
            "a decay must be finite"
        )


def check_log_decay(op: str, log_decay: Tensor) -> None:
    """Raise ValueError naming the first entry of ``log_decay`` that is NaN or above 0, if there is one."""
    # One maximum finds any (NaN is larger than all); only then is it worth telling where.
    if log_decay.numel() and not log_decay.detach().amax().item() <= 0:
        bad = (log_decay <= 0).logical_not_()
        place = tuple(int(i) for i in bad.nonzero()[0])
        raise ValueError(
            f"{op}: log_decay is {log_decay[place].item()} at {place} ({int(bad.sum())} such of {log_decay.numel()}); "
            "the logarithm of a decay must be at most 0 (-inf for a decay of 0)"
        )
