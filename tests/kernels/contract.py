"""What a row of the ops' table says, and the numbers every test of the contract is made of."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from scanweave.kernels import dispatch

Tensors = dict[str, Tensor]

#: Largest error of a forward pass, relative to the largest entry of the float64 reference.
FORWARD_BOUND = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 1e-2, torch.float16: 2e-3}
BACKWARD_BOUND = {torch.float32: 1e-4, torch.float64: 1e-11, torch.bfloat16: 2e-2, torch.float16: 4e-3}
LENGTHS = (1, 2, 63, 64, 65, 127, 1000)


@dataclass(frozen=True)
class Case:
    """One op in the table, with what the contract's tests need to know of it.

    Args:
        name: The row's name in test ids.
        op: The name under which the op's kernels are registered.
        call: The public function.
        inputs: Draws its tensor arguments, float64 or complex128, from (generator, batch, length); the initial state
            is among them, as ``initial_state``; ``reset`` is not.
        sequences: Names of the arguments (B, L, ...).
        refused: Names of the sequences in which NaN raises.
        batched: Names of further arguments that have the batch as axis 0.
        variants: Plain options to test beside the defaults.
        extreme: Inputs whose gates are 0, 1, tiny or huge, as ``inputs`` draws them.
        dtypes: The dtypes to test against the reference.
        mistakes: Calls that must raise: what to change in the inputs, the error's type, and a part of its message.
        interpreted: The longest sequence that Triton's interpreter gets through in seconds; 0 leaves the row to GPUs
            and to tests beside the contract.
        calls: How many registered ops one call runs.
        composed: Whether PyTorch's own ops are a part of it, whose threads a forked child lacks.
        spills: Bytes of registers that a compiled kernel may put into memory.
        restarts: Whether ``reset`` is the op's own; a gate of 0 in its place would let NaN through.
    """

    name: str
    op: str
    call: Callable[..., tuple[Tensor, Tensor]]
    inputs: Callable[[torch.Generator, int, int], Tensors]
    sequences: frozenset[str]
    extreme: Callable[[torch.Generator, int, int], Tensors]
    refused: frozenset[str] = frozenset()
    batched: frozenset[str] = frozenset({"initial_state"})
    variants: Sequence[Mapping[str, Any]] = ({},)
    dtypes: Sequence[torch.dtype] = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
    mistakes: Sequence[tuple[str, Callable[[Tensors], dict[str, Any]], type[Exception], str]] = field(default=())
    interpreted: int = 1000
    calls: int = 1
    composed: bool = False
    spills: int = 64
    restarts: bool = True

    def draw(self, length: int, *, batch: int = 2, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensors:
        """Return inputs in ``dtype`` (complex ones in its complex companion), the state in the state's dtype."""
        drawn = self.inputs(torch.Generator().manual_seed(seed), batch, length)
        return {name: cast(t, dtype, state=name == "initial_state") for name, t in drawn.items()}


def cast(t: Tensor, dtype: torch.dtype, *, state: bool = False) -> Tensor:
    """Return t in a dtype, or in that dtype's complex companion; a state never in half precision."""
    if state and dtype in (torch.bfloat16, torch.float16):
        dtype = torch.float32
    return t.to(dtype.to_complex() if t.is_complex() else dtype)


def normal(generator: torch.Generator, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return normal draws."""
    return torch.randn(*shape, generator=generator, dtype=dtype)


def packed(op: Callable[..., tuple[Tensor, Any]], shapes: Sequence[tuple[int, ...]]) -> Callable[..., Any]:
    """Return an op whose state is a tuple as one whose state is a single tensor (B, sum of sizes), as the tests ask.

    Args:
        op: The public function.
        shapes: The shape of each part of the state, less its batch axis.
    """
    sizes = [math.prod(shape) for shape in shapes]

    def call(*, initial_state: Tensor | None = None, **arguments: Any) -> tuple[Tensor, Tensor]:
        state = None
        if initial_state is not None:
            parts = zip(initial_state.split(sizes, 1), shapes, strict=True)
            state = tuple(part.unflatten(1, shape) for part, shape in parts)
        y, final = op(**arguments, initial_state=state)
        return y, torch.cat([part.flatten(1) for part in final], 1)

    return call


def draw_reset(length: int, batch: int = 2, seed: int = 1) -> Tensor:
    """Return a reset mask with about one start in eight steps."""
    return torch.rand(batch, length, generator=torch.Generator().manual_seed(seed)) < 0.125


def backends(case: Case, dtype: torch.dtype = torch.float32) -> list[str]:
    """Return the fast backends that serve the op here; the C++ library may not be built, Triton may lack a GPU."""
    probe = cast(torch.empty(0, dtype=case.draw(1)[min(case.sequences)].dtype), dtype)
    forms = dispatch.served_by(probe.device, probe.dtype)[case.op][1]
    return [name for name in ("cpu", "chunked", "triton") if name in forms and forms[name] is None]


def run(case: Case, tensors: Tensors, **options: Any) -> tuple[Tensor, Tensor]:
    """Call the op with its tensors by name."""
    return case.call(**tensors, **options)


def cotangents(y: Tensor, final: Tensor) -> tuple[Tensor, Tensor]:
    """Return fixed random gradients for the op's two outputs, the same in every dtype up to rounding."""
    generator = torch.Generator().manual_seed(7)

    def like(t: Tensor) -> Tensor:
        drawn = torch.randn(t.shape, generator=generator, dtype=torch.complex128 if t.is_complex() else torch.float64)
        return drawn.to(t.dtype)

    return like(y), like(final)


def gradients(case: Case, tensors: Tensors, **options: Any) -> tuple[Tensor, Tensor, Tensors]:
    """Return y, the final state and the gradient of every tensor argument."""
    leaves = {name: t.detach().clone().requires_grad_() for name, t in tensors.items()}
    y, final = run(case, leaves, **options)
    found = torch.autograd.grad((y, final), list(leaves.values()), cotangents(y, final))
    return y.detach(), final.detach(), dict(zip(leaves, found, strict=True))


@functools.lru_cache(maxsize=256)
def expected(case_name: str, variant: int, length: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensors]:
    """Return the reference's results in float64 on inputs that were rounded to ``dtype`` first."""
    from .table import CASES

    case = CASES[case_name]
    exact = {name: cast(t, torch.float64) for name, t in case.draw(length, dtype=dtype).items()}
    return gradients(case, exact, reset=draw_reset(length), backend="reference", **case.variants[variant])


def error(found: Tensor, wanted: Tensor) -> float:
    """Return the largest difference relative to the largest entry of what is wanted; infinite where NaN differ."""
    wanted = wanted.to(torch.complex128 if wanted.is_complex() else torch.float64)
    found = found.to(wanted.dtype)
    difference = (found - wanted).abs().max().item() if wanted.numel() else 0.0
    scale = wanted.abs().max().item() if wanted.numel() else 1.0
    return difference / max(scale, 1e-30) if difference == difference else float("inf")


def assert_close(found: Tensor, wanted: Tensor, bound: float, what: str) -> None:
    """Fail unless the relative error is within the bound."""
    assert found.shape == wanted.shape, f"{what}: shape {tuple(found.shape)}, expected {tuple(wanted.shape)}"
    off = error(found, wanted)
    assert off <= bound, f"{what}: relative error {off:.3g}, bound {bound:.3g}"
