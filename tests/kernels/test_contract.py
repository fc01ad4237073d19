"""The op contract: every row of the table, on every backend that serves it here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from scanweave.kernels import BackendError, use_backend

from .contract import (
    BACKWARD_BOUND,
    FORWARD_BOUND,
    LENGTHS,
    Case,
    Tensors,
    assert_close,
    backends,
    cast,
    draw_reset,
    expected,
    gradients,
    run,
)
from .table import CASES

ROWS = [
    pytest.param(case, name, id=f"{case.name}-{name}")
    for case in CASES.values()
    for name in backends(case)
    if name != "triton" or case.interpreted or torch.cuda.is_available()
]
served = pytest.mark.parametrize(("case", "backend"), ROWS)
# Only the C++ kernels share out work among threads themselves; PyTorch's matrix products may sum in another order.
threaded = pytest.mark.parametrize(("case", "backend"), [row for row in ROWS if row.values[1] == "cpu"])


def _doubles(case: Case, backend: str) -> None:
    if torch.float64 not in case.dtypes or backend not in backends(case, torch.float64):
        pytest.skip("no float64 here")
    if backend == "triton" and not torch.cuda.is_available():
        pytest.skip("thousands of calls: minutes in the interpreter; the reference's gradients are compared above")


def _length(case: Case, backend: str, wanted: int) -> int:
    """Return a sequence's length: what is wanted, or what Triton's interpreter gets through in seconds."""
    interpreted = backend == "triton" and not torch.cuda.is_available()
    return min(wanted, case.interpreted) if interpreted else wanted


def _assert_all(
    found: tuple[Tensor, Tensor, Tensors], wanted: tuple[Tensor, Tensor, Tensors], dtype: torch.dtype
) -> None:
    assert_close(found[0], wanted[0], FORWARD_BOUND[dtype], "y")
    assert_close(found[1], wanted[1], FORWARD_BOUND[dtype], "final_state")
    for name, gradient in wanted[2].items():
        assert_close(found[2][name], gradient, BACKWARD_BOUND[dtype], f"gradient of {name}")


@served
@pytest.mark.parametrize("length", LENGTHS)
def test_matches_the_reference(case: Case, backend: str, length: int) -> None:
    if length > _length(case, backend, length):
        pytest.skip("minutes in Triton's interpreter")
    for variant, options in enumerate(case.variants):
        wanted = expected(case.name, variant, length, torch.float32)
        drawn = case.draw(length, dtype=torch.float32)
        _assert_all(gradients(case, drawn, reset=draw_reset(length), backend=backend, **options), wanted, torch.float32)


@served
def test_serves_other_dtypes(case: Case, backend: str) -> None:
    length = _length(case, backend, 65)
    for dtype in case.dtypes:
        if dtype == torch.float32 or backend not in backends(case, dtype):
            continue
        drawn = case.draw(length, dtype=dtype)
        found = gradients(case, drawn, reset=draw_reset(length), backend=backend, **case.variants[0])
        first = next(drawn[name] for name in case.sequences)
        assert found[0].dtype == first.dtype
        assert found[1].dtype == drawn["initial_state"].dtype
        _assert_all(found, expected(case.name, 0, length, dtype), dtype)


@served
def test_runs_without_state_and_reset(case: Case, backend: str) -> None:
    for options in case.variants:
        drawn = case.draw(_length(case, backend, 33), dtype=torch.float32)
        del drawn["initial_state"]
        found = gradients(case, drawn, backend=backend, **options)
        exact = {name: cast(t, torch.float64) for name, t in drawn.items()}
        _assert_all(found, gradients(case, exact, backend="reference", **options), torch.float32)


@served
def test_gradients_of_both_orders(case: Case, backend: str) -> None:
    _doubles(case, backend)
    for options in case.variants:
        drawn = case.draw(4)
        leaves = [t.requires_grad_() for t in drawn.values()]
        reset = torch.tensor([[False, False, True, False], [True, False, False, False]])

        def call(*tensors: Tensor, names=tuple(drawn), reset=reset, options=options) -> tuple[Tensor, Tensor]:
            return run(case, dict(zip(names, tensors, strict=True)), reset=reset, backend=backend, **options)

        assert torch.autograd.gradcheck(call, leaves)
        # Second gradients come from the reference form, whichever backend serves the first.
        if backend == backends(case, torch.float64)[0]:
            assert torch.autograd.gradgradcheck(call, leaves)


class _Recorder(TorchDispatchMode):
    """Keeps the arguments with which an op of this package was called."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "scanweave":
            self.calls.append((func, args))
        return func(*args, **(kwargs or {}))


@served
def test_opcheck(case: Case, backend: str) -> None:
    drawn = {name: t.requires_grad_() for name, t in case.draw(9, dtype=torch.float32).items()}
    with _Recorder() as recorder:
        y, final = run(case, drawn, reset=draw_reset(9), backend=backend)
        (y.abs().sum() + final.abs().sum()).backward()
    assert len(recorder.calls) == 2 * case.calls
    for op, args in recorder.calls:
        # The backward op is differentiated through the forward one, never itself.
        grad = not op.name().endswith("_backward")
        fresh = [
            a.detach().clone().requires_grad_(grad and a.requires_grad) if isinstance(a, Tensor) else a for a in args
        ]
        torch.library.opcheck(op, tuple(fresh))


def _along_time(case: Case, tensors: Tensors, part: slice) -> Tensors:
    return {n: t[:, part] if n in case.sequences and t.shape[1] > 1 else t for n, t in tensors.items()}


def _in_two_calls(case: Case, cut: int, reset: Tensor, **fixed: Any) -> Callable[..., tuple[Tensor, Tensor]]:
    """Return the op as two calls, the second from the first one's state."""
    parts = [slice(None, cut), slice(cut, None)]
    if fixed.get("reverse"):
        parts = [slice(-cut, None), slice(None, -cut)]

    def call(initial_state: Tensor, **tensors: Tensor) -> tuple[Tensor, Tensor]:
        state, found = initial_state, []
        for part in parts:
            piece = _along_time(case, tensors, part)
            y, state = case.call(**piece, initial_state=state, reset=reset[:, part], **fixed)
            found.append(y)
        return torch.cat(found[::-1] if fixed.get("reverse") else found, 1), state

    return call


@served
@pytest.mark.parametrize("cut", [1, 13])
def test_state_carries_over_a_split(case: Case, backend: str, cut: int) -> None:
    length = _length(case, backend, 65)
    drawn, reset = case.draw(length, dtype=torch.float32), draw_reset(length)
    for options in case.variants:
        split = replace(case, call=_in_two_calls(case, cut, reset, backend=backend, **options))
        _assert_all(
            gradients(split, drawn), gradients(case, drawn, reset=reset, backend=backend, **options), torch.float32
        )


@served
def test_reset_equals_separate_calls(case: Case, backend: str) -> None:
    length, cut = 40, 17
    for options in case.variants:
        drawn = case.draw(length, dtype=torch.float32)
        del drawn["initial_state"]
        reverse = options.get("reverse", False)
        reset = torch.zeros(2, length, dtype=torch.bool)
        reset[:, cut - 1 if reverse else cut] = True
        y, _ = run(case, drawn, reset=reset, backend=backend, **options)
        for part in (slice(None, cut), slice(cut, None)):
            piece = _along_time(case, drawn, part)
            alone, _ = run(case, piece, backend=backend, **options)
            assert_close(y[:, part], alone, FORWARD_BOUND[torch.float32], f"y over {part}")


@served
def test_nothing_leaks_over_a_reset(case: Case, backend: str) -> None:
    if not case.restarts:
        pytest.skip("the op has no reset")
    drawn = case.draw(20, dtype=torch.float32)
    reset = torch.zeros(2, 20, dtype=torch.bool)
    reset[:, 10] = True
    clean, _ = run(case, drawn, reset=reset, backend=backend)
    for name in case.sequences - case.refused:
        spoilt = {**drawn, name: drawn[name].clone()}
        spoilt[name][:, 4] = torch.nan
        y, final = run(case, spoilt, reset=reset, backend=backend)
        assert torch.isfinite(final).all(), name
        assert torch.equal(y[:, 10:], clean[:, 10:]), name


@served
def test_honours_strides(case: Case, backend: str) -> None:
    drawn = case.draw(_length(case, backend, 37), dtype=torch.float32)
    reset = draw_reset(drawn[min(case.sequences)].shape[1])
    plain = gradients(case, drawn, reset=reset, backend=backend)

    def spread(t: Tensor) -> Tensor:
        return torch.stack([t, torch.full_like(t, 9)], -1)[..., 0]

    def turned(t: Tensor) -> Tensor:
        return t.transpose(0, -1).contiguous().transpose(0, -1)

    for view in (spread, turned):
        leaves = {name: view(t).detach().requires_grad_() for name, t in drawn.items()}
        y, final = run(case, leaves, reset=view(reset), backend=backend)
        assert_close(y, plain[0], 1e-6, "y")
        assert_close(final, plain[1], 1e-6, "final_state")
        # The gradient of a sum is an expanded scalar: all its strides are zero.
        found = torch.autograd.grad(y.real.sum() + final.real.sum(), list(leaves.values()))
        leaves = {name: t.clone().requires_grad_() for name, t in drawn.items()}
        y, final = run(case, leaves, reset=reset, backend=backend)
        wanted = torch.autograd.grad((y, final), list(leaves.values()), (torch.ones_like(y), torch.ones_like(final)))
        for one, other in zip(found, wanted, strict=True):
            assert_close(one, other, 1e-6, "gradient")


@served
def test_serves_an_expanded_batch(case: Case, backend: str) -> None:
    one = case.draw(21, batch=1, dtype=torch.float32)
    many = {n: t.expand(3, *t.shape[1:]) if n in case.sequences | case.batched else t for n, t in one.items()}
    y, final = run(case, many, backend=backend)
    alone, state = run(case, one, backend=backend)
    for i in range(3):
        assert_close(y[i : i + 1], alone, 1e-6, "y")
        assert_close(final[i : i + 1], state, 1e-6, "final_state")


@served
def test_extreme_gates(case: Case, backend: str) -> None:
    for options in case.variants:
        exact = case.extreme(torch.Generator().manual_seed(3), 2, _length(case, backend, 200))
        exact = {name: cast(cast(t, torch.float32), torch.float64) for name, t in exact.items()}
        wanted = gradients(case, exact, backend="reference", **options)
        drawn = {name: cast(t, torch.float32) for name, t in exact.items()}
        found = gradients(case, drawn, backend=backend, **options)
        assert all(torch.isfinite(t).all() for t in (found[0], found[1], *found[2].values()))
        _assert_all(found, wanted, torch.float32)


@served
@pytest.mark.filterwarnings("ignore:Torchinductor does not support code generation for complex")
def test_compiles_without_a_break(case: Case, backend: str) -> None:
    drawn, reset = case.draw(12, dtype=torch.float32), draw_reset(12)
    plain = gradients(case, drawn, reset=reset, backend=backend)
    torch.compiler.reset()
    compiled = torch.compile(case.call, fullgraph=True, backend="aot_eager")
    twin = replace(case, call=compiled)
    found = gradients(twin, drawn, reset=reset, backend=backend)
    for one, other in zip((*found[:2], *found[2].values()), (*plain[:2], *plain[2].values()), strict=True):
        assert_close(one, other, 1e-6, "compiled")


@served
def test_exports_with_a_free_length(case: Case, backend: str) -> None:
    class Module(torch.nn.Module):
        def forward(self, tensors: Tensors, reset: Tensor) -> tuple[Tensor, Tensor]:
            return run(case, tensors, reset=reset, backend=backend)

    time = torch.export.Dim("time", min=2)
    drawn = case.draw(12, dtype=torch.float32)
    free = {n: {1: time} if n in case.sequences and t.shape[1] > 1 else {} for n, t in drawn.items()}
    program = torch.export.export(Module(), (drawn, draw_reset(12)), dynamic_shapes=(free, {1: time}))
    longer = case.draw(29, dtype=torch.float32)
    y, final = program.module()(longer, draw_reset(29))
    wanted = run(case, longer, reset=draw_reset(29), backend=backend)
    assert torch.equal(y, wanted[0])
    assert torch.equal(final, wanted[1])


@served
def test_vmap_over_sequences(case: Case, backend: str) -> None:
    rows = [case.draw(11, seed=seed, dtype=torch.float32) for seed in range(3)]
    mapped = [n for n in rows[0] if n in case.sequences | case.batched]
    stacked = {n: torch.stack([r[n] for r in rows], -1) for n in mapped}
    shared = {n: t for n, t in rows[0].items() if n not in mapped}
    reset = draw_reset(11)
    y, final = torch.vmap(lambda t: run(case, {**shared, **t}, reset=reset, backend=backend), in_dims=-1)(stacked)
    for i, row in enumerate(rows):
        wanted = run(case, {**row, **shared}, reset=reset, backend=backend)
        assert_close(y[i], wanted[0], 1e-6, "y")
        assert_close(final[i], wanted[1], 1e-6, "final_state")


@served
@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
def test_gradients_under_vmap(case: Case, backend: str) -> None:
    """Gradients per sample, parameters among them, equal one call per sample."""
    rows = [case.draw(11, seed=seed, dtype=torch.float32) for seed in range(3)]

    def loss(tensors: Tensors) -> Tensor:
        y, final = run(case, tensors, backend=backend)
        return y.abs().square().sum() + final.abs().square().sum()

    stacked = {n: torch.stack([r[n] for r in rows]) for n in rows[0]}
    found = torch.vmap(torch.func.grad(loss))(stacked)
    whole = torch.func.grad(lambda t: torch.vmap(loss)(t).sum())(stacked)
    for name in stacked:
        assert_close(whole[name], found[name], 1e-6, f"gradient of {name} through vmap")
    for i, row in enumerate(rows):
        leaves = {n: t.clone().requires_grad_() for n, t in row.items()}
        for name, wanted in zip(leaves, torch.autograd.grad(loss(leaves), list(leaves.values())), strict=True):
            assert_close(found[name][i], wanted, BACKWARD_BOUND[torch.float32], f"gradient of {name}")


@served
def test_autocast_changes_nothing(case: Case, backend: str) -> None:
    drawn = case.draw(_length(case, backend, 21), dtype=torch.float32)
    wanted = gradients(case, drawn, backend=backend)
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients(case, drawn, backend=backend)
    for one, other in zip((*found[:2], *found[2].values()), (*wanted[:2], *wanted[2].values()), strict=True):
        assert torch.equal(one, other)


@threaded
def test_threads_do_not_change_a_bit(case: Case, backend: str) -> None:
    drawn, before = case.draw(1000, batch=3, dtype=torch.float32), torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            y, final, grads = gradients(case, drawn, reset=draw_reset(1000, 3), backend=backend)
            found.append([y, final, *grads.values()])
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(one, two) for one, two in zip(found[0], other, strict=True))


@pytest.mark.parametrize(
    ("case", "change", "kind", "message"),
    [
        pytest.param(case, *mistake[1:], id=f"{case.name}-{mistake[0]}")
        for case in CASES.values()
        for mistake in case.mistakes
    ],
)
def test_names_what_is_wrong(case: Case, change: Any, kind: type[Exception], message: str) -> None:
    drawn = case.draw(8, dtype=torch.float32)
    with pytest.raises(kind, match=message):
        run(case, {**drawn, **change(drawn)})


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_forced_backend_serves_or_says_why(case: Case) -> None:
    drawn = case.draw(8, dtype=torch.float32)
    serving = backends(case)
    for name in ("cpu", "chunked", "triton"):
        with use_backend(name):
            if name in serving:
                run(case, drawn)
            else:
                with pytest.raises(BackendError, match=f"{case.op}: backend '{name}' cannot serve"):
                    run(case, drawn)
    with pytest.raises(BackendError, match="names the backend 'cuda'; there are triton, cpu, chunked, reference"):
        run(case, drawn, backend="cuda")
