"""The one helper that registers an op with ``torch.library``: forward, backward, shapes, autograd.

``Library.define`` / ``impl`` with an ``autograd.Function`` on the Autograd key costs less per call than
``custom_op``, which small models feel. Each op gets a second op for its gradient, so that a compiled graph holds both
as single nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from . import dispatch

_library = torch.library.Library("scanweave", "DEF")

Op = Callable[..., tuple[Tensor, ...]]

_PLAIN = frozenset({Tensor, torch.nn.Parameter})


def _direct(op: Op, kernel: Op) -> Op:
    """Return what calls ``kernel`` itself where nothing listens at the dispatcher, else ``op`` below autograd.

    The trip through the dispatcher and back costs more than a small scan; subclasses of Tensor (fake ones among them)
    and dispatch modes (tracing, flop counting) need it.
    """

    def call(*args: Any) -> tuple[Tensor, ...]:
        if not torch._C._len_torch_dispatch_stack():
            for a in args:
                if isinstance(a, Tensor) and type(a) not in _PLAIN:
                    break
            else:
                return kernel(*args)
        with torch._C._AutoDispatchBelowAutograd():
            return op(*args)

    return call


def _exactly(kernel: Op, args: tuple[Any, ...]) -> tuple[Tensor, ...]:
    """Call a kernel with autocast off: the products it is made of keep the precision of its arguments."""
    device = args[0].device.type
    if not torch.is_autocast_enabled(device):
        return kernel(*args)
    with torch.autocast(device, enabled=False):
        return kernel(*args)


def define_op(
    name: str,
    *,
    schema: str,
    backward_schema: str,
    fake: Callable[..., tuple[Tensor, ...]],
    fake_backward: Callable[..., tuple[Tensor, ...]],
    saved: Callable[[Sequence[Any], Sequence[Tensor]], Sequence[Any]],
    differentiable: Sequence[int],
    twice: Callable[..., tuple[Tensor | None, ...]],
    batched: Sequence[int] = (),
    extras: int = 0,
) -> Callable[..., tuple[Tensor, ...]]:
    """Register ``scanweave::name`` and ``scanweave::name_backward``, and return what calls them.

    Tracing, tensor subclasses and dispatch modes meet the registered ops; plain tensors go to the backend directly.

    Args:
        name: The op's name.
        schema: ``(args..., str backend) -> (Tensor, ...)``; the last argument names the backend.
        backward_schema: ``(saved..., grads..., str backend) -> (Tensor, ...)``: gradients of the arguments in
            ``differentiable``, in that order; where an argument was None its gradient is an empty tensor.
        fake: The outputs' shapes and dtypes from the op's arguments.
        fake_backward: The same for the backward op.
        saved: From the op's arguments and outputs, what the backward op needs (tensors, None and plain values).
        differentiable: Positions of the arguments that have a gradient.
        twice: The backward op's arguments less the backend to its results, in differentiable PyTorch: it serves where
            a gradient of the gradient is asked for (``create_graph=True``).
        batched: Positions of the arguments whose axis 0 is the batch (or 1, shared by the batch), as is the outputs':
            ``torch.vmap`` over these makes the batch longer. A tensor of one axis there is a parameter, without batch.
        extras: Number of trailing outputs that only the backward op reads. Where there are any, the op's last argument
            but one is ``bool save``: call it with False; it is set where a gradient will be asked for.

    Returns:
        The op, called with positional arguments.
    """
    _library.define(f"{name}{schema}")
    _library.define(f"{name}_backward{backward_schema}")
    forward_op = getattr(torch.ops.scanweave, name).default
    backward_op = getattr(torch.ops.scanweave, f"{name}_backward").default

    def run_forward(*args: Any) -> tuple[Tensor, ...]:
        return _exactly(dispatch.kernel(name, args[-1]).forward, args[:-1])

    def run_backward(*args: Any) -> tuple[Tensor, ...]:
        backward = dispatch.kernel(name, args[-1]).backward
        assert backward is not None, f"{name}: autograd differentiates the backend {args[-1]!r}"
        return _exactly(backward, args[:-1])

    forward, backward = _direct(forward_op, run_forward), _direct(backward_op, run_backward)
    ordinary, transformed = _functions(
        forward, backward, lambda *args: call(*args), saved, differentiable, twice, frozenset(batched), extras
    )

    def run_autograd(*args: Any) -> tuple[Tensor, ...]:
        if torch.is_grad_enabled():
            for i in differentiable:
                if args[i] is not None and args[i].requires_grad:
                    return ordinary(*args)
        return forward(*args)

    for suffix, run, mapped, shapes in (
        ("", run_forward, partial(_fold, forward_op, frozenset(batched)), fake),
        ("_backward", run_backward, partial(_each, backward_op), fake_backward),
    ):
        _library.impl(f"{name}{suffix}", run, "CompositeExplicitAutograd")
        torch.library.register_vmap(f"scanweave::{name}{suffix}", mapped, lib=_library)
        torch.library.register_fake(f"scanweave::{name}{suffix}", shapes, lib=_library)
    _library.impl(name, run_autograd, "Autograd")

    def call(*args: Any) -> tuple[Tensor, ...]:
        if torch.compiler.is_compiling():
            return forward_op(*args)
        # torch.func.grad must meet the Function itself: below the dispatcher its levels are out of reach.
        if torch._C._are_functorch_transforms_active():
            return transformed(*args)
        # What the dispatcher would call first, without its trip through Python and back.
        return run_autograd(*args)

    return call


def _functions(
    run_forward: Op,
    run_backward: Op,
    call: Op,
    saved: Callable[[Sequence[Any], Sequence[Tensor]], Sequence[Any]],
    differentiable: Sequence[int],
    twice: Callable[..., tuple[Tensor | None, ...]],
    batched: frozenset[int],
    extras: int,
) -> tuple[Op, Op]:
    """Return what runs an op under autograd: in ordinary calls, and under torch.func's transformations."""

    def remember(ctx: Any, args: Sequence[Any], outputs: Sequence[Tensor]) -> None:
        keep = saved(args, outputs)
        ctx.save_for_backward(*(k for k in keep if isinstance(k, Tensor)))
        ctx.plain = [None if isinstance(k, Tensor) else (k,) for k in keep]
        ctx.present = [isinstance(a, Tensor) for a in args]
        ctx.backend = args[-1]
        ctx.set_materialize_grads(False)
        if extras:
            ctx.mark_non_differentiable(*outputs[len(outputs) - extras :])

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *args: Any) -> tuple[Tensor, ...]:
            outputs = run_forward(*args)
            remember(ctx, args, outputs)
            return outputs

        @staticmethod
        def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
            grads = grads[: len(grads) - extras]
            found: list[Tensor | None] = [None] * len(ctx.present)
            if all(g is None for g in grads):
                return tuple(found)
            tensors = iter(ctx.saved_tensors)
            keep = [next(tensors) if p is None else p[0] for p in ctx.plain]
            if torch.is_grad_enabled():
                gradients: Sequence[Tensor | None] = twice(*keep, *grads)
            else:
                gradients = run_backward(*keep, *grads, ctx.backend)
            for position, gradient in zip(differentiable, gradients, strict=True):
                if ctx.present[position] and ctx.needs_input_grad[position]:
                    found[position] = gradient
            return tuple(found)

    class Transformed(Function):
        """What torch.func asks for; PyTorch inspects such a Function's signature at every call."""

        @staticmethod
        def forward(*args: Any) -> tuple[Tensor, ...]:
            return run_forward(*args)

        @staticmethod
        def setup_context(ctx: Any, args: tuple[Any, ...], outputs: tuple[Tensor, ...]) -> None:
            remember(ctx, args, outputs)

        @staticmethod
        def vmap(info: Any, dims: Sequence[int | None], *args: Any) -> Any:
            return _fold(call, batched, info, dims, *args)

    def applied(function: type[torch.autograd.Function]) -> Op:
        if not extras:
            return function.apply
        return lambda *args: function.apply(*args[:-2], True, args[-1])

    return applied(Function), applied(Transformed)


_AUTOGRAD = tuple(
    getattr(torch._C.DispatchKey, name)
    for name in ("AutogradFunctionality", "AutogradOther", "AutogradNestedTensor", "ADInplaceOrView")
)


@contextmanager
def recording() -> Iterator[None]:
    """Let autograd record inside an op: the dispatcher calls it with autograd shut off, and modes saw the op itself."""
    exclude = torch._C._dispatch_tls_local_exclude_set()
    for key in _AUTOGRAD:
        exclude = exclude.remove(key)
    guard = torch._C._ForceDispatchKeyGuard(torch._C._dispatch_tls_local_include_set(), exclude)
    with _disable_current_modes(), guard, torch.enable_grad():
        yield


def gradients_of(
    function: Callable[..., Sequence[Tensor]], arguments: Sequence[Any], grads: Sequence[Tensor | None]
) -> tuple[Tensor | None, ...]:
    """Differentiate ``function`` by autograd, so that the result can be differentiated again.

    Args:
        function: A differentiable function, such as an op's reference form.
        arguments: What it is called with.
        grads: The gradients of its outputs; None counts as zero.

    Returns:
        The gradient of each argument, None for those that need none.
    """
    # New nodes for the arguments: one may have been computed from another, and that path is not the function's own.
    inner = [a.view_as(a) if isinstance(a, Tensor) and a.requires_grad else a for a in arguments]
    wanted = [i for i, a in enumerate(inner) if isinstance(a, Tensor) and a.requires_grad]
    outputs = zip(function(*inner), grads, strict=True)
    pairs = [(o, g) for o, g in outputs if g is not None and o.requires_grad]
    if not pairs:
        return (None,) * len(inner)
    found = torch.autograd.grad(
        [o for o, _ in pairs], [inner[i] for i in wanted], [g for _, g in pairs], create_graph=True, allow_unused=True
    )
    by_position = dict(zip(wanted, found, strict=True))
    return tuple(by_position.get(i) for i in range(len(inner)))


def _each(op: Callable[..., tuple[Tensor, ...]], info: Any, dims: Sequence[int | None], *args: Any) -> Any:
    """Serve ``torch.vmap`` by one call per slice."""
    calls = [
        op(*(a if d is None else a.select(d, i) for a, d in zip(args, dims, strict=True)))
        for i in range(info.batch_size)
    ]
    outputs = tuple(torch.stack(o) for o in zip(*calls, strict=True))
    return outputs, (0,) * len(outputs)


def _fold(
    op: Callable[..., tuple[Tensor, ...]],
    batched: frozenset[int],
    info: Any,
    dims: Sequence[int | None],
    *args: Any,
) -> Any:
    """Serve ``torch.vmap`` by one call with a longer batch; where a parameter is mapped, by one call per slice."""
    axes = (a.dim() - (d is not None) if isinstance(a, Tensor) else 0 for a, d in zip(args, dims, strict=True))
    batched = batched - {i for i, count in enumerate(axes) if count == 1}
    if any(d is not None and i not in batched for i, d in enumerate(dims)):
        return _each(op, info, dims, *args)
    count = info.batch_size
    front = {
        i: args[i].unsqueeze(0) if dims[i] is None else args[i].movedim(dims[i], 0)
        for i in batched
        if args[i] is not None
    }
    batch = max(t.shape[1] for t in front.values())
    folded = list(args)
    for i, t in front.items():
        if dims[i] is not None or t.shape[1] > 1:
            folded[i] = t.expand(count, batch, *t.shape[2:]).flatten(0, 1)
    outputs = tuple(o.unflatten(0, (count, batch)) for o in op(*folded))
    return outputs, (0,) * len(outputs)
