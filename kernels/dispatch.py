"""Which backend serves a call: the only place that chooses.

Order: ``triton`` on a GPU that Triton serves, ``cpu`` on the CPU, else ``chunked``. ``reference`` is chosen only by
name. A backend that was asked for and cannot serve raises :class:`BackendError`, which says why; nothing falls back in
silence.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

BACKENDS = ("triton", "cpu", "chunked", "reference")

Reason = str | None


class BackendError(RuntimeError):
    """The backend that was asked for cannot serve this call; the message says why."""


@dataclass(frozen=True)
class Kernel:
    """One backend's form of one op.

    Args:
        forward: Called with the op's arguments less the backend's name; returns the op's outputs.
        backward: Called with the backward op's arguments less the backend's name; None where autograd differentiates
            ``forward`` itself.
        refuses: Given the op's first tensor, returns why this backend cannot serve it, or None.
    """

    forward: Callable[..., Any]
    backward: Callable[..., Any] | None
    refuses: Callable[[Tensor], Reason]


_kernels: dict[str, dict[str, Kernel]] = {}
_forced: str | None = None


def _check_name(name: str, source: str) -> str:
    if name not in BACKENDS:
        raise BackendError(f"{source} names the backend {name!r}; there are {', '.join(BACKENDS)}")
    return name


def register_kernel(op: str, backend: str, kernel: Kernel) -> None:
    """Make a backend's form of an op known to the dispatcher.

    Args:
        op: The op's public name.
        backend: One of :data:`BACKENDS`.
        kernel: The functions that serve it.
    """
    _kernels.setdefault(op, {})[_check_name(backend, "register_kernel")] = kernel


def kernel(op: str, backend: str) -> Kernel:
    """Return the registered form of ``op`` for ``backend``."""
    return _kernels[op][backend]


def forced_backend() -> str | None:
    """Return the backend that :func:`use_backend` or ``SCANWEAVE_BACKEND`` asks for, or None."""
    if _forced is not None:
        return _forced
    name = _environment()
    return _check_name(name, "the environment variable SCANWEAVE_BACKEND") if name else None


@torch.compiler.assume_constant_result
def _environment() -> str:
    return os.environ.get("SCANWEAVE_BACKEND", "")


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Serve every op called inside the block by one backend; the choice holds for the whole process.

    Args:
        name: One of ``triton``, ``cpu``, ``chunked``, ``reference``.

    Raises:
        BackendError: There is no backend of that name.

    Example:
        >>> import torch
        >>> from scanweave.kernels import linear_scan, use_backend
        >>> with use_backend("reference"):
        ...     y, state = linear_scan(torch.full((1, 3, 1), 0.5), torch.ones(1, 3, 1))
        >>> y.flatten().tolist()
        [1.0, 1.5, 1.75]
    """
    global _forced
    before, _forced = _forced, _check_name(name, "use_backend")
    try:
        yield
    finally:
        _forced = before


def select(op: str, tensor: Tensor, backend: str | None = None, unable: Mapping[str, str] | None = None) -> str:
    """Return the name of the backend that serves ``op`` on ``tensor``.

    Args:
        op: The op's public name.
        tensor: The op's first tensor: its device and dtype decide.
        backend: A name to force, or None to take :func:`use_backend`'s, the environment's, or the default order.
        unable: By backend, why it cannot serve this call's options, whatever the tensor.

    Returns:
        One of :data:`BACKENDS`.

    Raises:
        BackendError: A forced backend cannot serve this call.
    """
    kernels = _kernels[op]
    wanted = _check_name(backend, "backend=") if backend is not None else forced_backend()
    if wanted is not None:
        reason = _refusal(kernels[wanted], wanted, tensor, unable) if wanted in kernels else "the op has no such form"
        if reason:
            raise BackendError(
                f"{op}: backend {wanted!r} cannot serve a {tensor.dtype} tensor on {tensor.device}: {reason}"
            )
        return wanted
    return _default(kernels, tensor, unable)


def _refusal(form: Kernel, name: str, tensor: Tensor, unable: Mapping[str, str] | None) -> Reason:
    return form.refuses(tensor) or (unable.get(name) if unable else None)


def _default(kernels: dict[str, Kernel], tensor: Tensor, unable: Mapping[str, str] | None = None) -> str:
    name = "cpu" if tensor.device.type == "cpu" else "triton"
    return name if name in kernels and _refusal(kernels[name], name, tensor, unable) is None else "chunked"


def served_by(
    device: torch.device | str, dtype: torch.dtype = torch.float32
) -> dict[str, tuple[str, dict[str, Reason]]]:
    """Tell which backend serves each op on a device when none is forced, and why the others do not.

    Args:
        device: Where the tensors would lie.
        dtype: Their dtype.

    Returns:
        For each op the chosen backend and, by backend, the reason of a refusal (None where it could serve).
    """
    probe = torch.empty(0, dtype=dtype, device=device)
    return {
        op: (_default(forms, probe), {name: form.refuses(probe) for name, form in forms.items()})
        for op, forms in _kernels.items()
    }


def always(_: Tensor) -> Reason:
    """Refuse nothing: for forms made of PyTorch ops."""
    return None
