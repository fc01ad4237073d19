"""wkv4 beyond the op contract: its sum written out, empty states, slow decays over long sequences."""

from __future__ import annotations

import pytest
import torch

from scanweave.kernels import WKV4State, wkv4

from .contract import BACKWARD_BOUND, FORWARD_BOUND, assert_close, backends, draw_reset, expected, gradients
from .table import CASES

CASE = CASES["wkv4"]
every_backend = pytest.mark.parametrize("backend", [*backends(CASE), "reference"])
compiled = pytest.mark.parametrize(
    "backend", [name for name in backends(CASE) if name != "triton" or torch.cuda.is_available()]
)


@every_backend
def test_equals_the_sum_written_out(backend: str) -> None:
    drawn = CASE.draw(12)
    k, v, w, u = (drawn[name] for name in "kvwu")
    y, _ = wkv4(*(x.float() for x in (k, v, w, u)), backend=backend)
    for t in range(12):
        past = torch.arange(t - 1, -1, -1, dtype=torch.float64).unsqueeze(-1)
        weights = torch.cat([torch.exp(k[:, :t] - past * w), torch.exp(k[:, t : t + 1] + u)], 1)
        wanted = (weights * v[:, : t + 1]).sum(1) / weights.sum(1)
        assert_close(y[:, t], wanted, FORWARD_BOUND[torch.float32], f"y at {t}")


@every_backend
def test_an_empty_state_counts_as_none(backend: str) -> None:
    drawn = CASE.draw(9, dtype=torch.float32)
    del drawn["initial_state"]
    y, final = wkv4(**drawn, backend=backend)
    zero = torch.zeros(2, 5)
    for maximum in (-torch.inf, -1e38):
        state = WKV4State(zero, zero, zero + maximum)
        packed = {**drawn, "initial_state": torch.cat(state, 1)}
        found = gradients(CASE, packed, backend=backend)
        assert torch.equal(found[0], y)
        assert torch.equal(found[1], torch.cat(final, 1))
        assert all(torch.isfinite(gradient).all() for gradient in found[2].values())


@compiled
def test_a_slow_decay_is_not_rounded_away(backend: str) -> None:
    """Beside a key of 100, 1e-5 per step is at the edge of what float32 tells apart; after 4096 steps it is 4 %."""
    length = 4097
    k = torch.full((1, length, 1), -100.0)
    k[:, 0] = 100
    v = torch.zeros(1, length, 1)
    v[:, 0] = 1
    rate, zero = torch.tensor([1e-5]), torch.zeros(1)
    _, state = wkv4(k, v, rate, zero, backend=backend)
    found = state.numerator.double().log() + state.maximum.double() - 100
    assert abs(found.item() / (-1e-5 * (length - 1)) - 1) < 0.01


@pytest.mark.skipif("triton" not in backends(CASE), reason="Triton does not serve here, nor does its interpreter")
def test_triton_takes_channels_block_by_block() -> None:
    case, reset = CASES["wkv4-wide"], draw_reset(35)
    wanted = expected(case.name, 0, 35, torch.float32)
    y, final, grads = gradients(case, case.draw(35, dtype=torch.float32), reset=reset, backend="triton")
    assert_close(y, wanted[0], FORWARD_BOUND[torch.float32], "y")
    assert_close(final, wanted[1], FORWARD_BOUND[torch.float32], "final_state")
    for name, gradient in wanted[2].items():
        assert_close(grads[name], gradient, BACKWARD_BOUND[torch.float32], f"gradient of {name}")


@pytest.mark.parametrize("given", [torch.zeros(2, 5), (torch.zeros(2, 5),) * 2])
def test_names_what_is_no_state(given: object) -> None:
    drawn = CASE.draw(4, dtype=torch.float32)
    with pytest.raises(TypeError, match=r"expected the three tensors of WKV4State"):
        wkv4(**{**drawn, "initial_state": given})


def test_names_the_part_of_a_state() -> None:
    drawn = CASE.draw(4, dtype=torch.float32)
    part = torch.zeros(2, 5)
    with pytest.raises(ValueError, match=r"wkv4: initial_state.maximum has shape \(5,\)"):
        wkv4(**{**drawn, "initial_state": (part, part, part[0])})
    with pytest.raises(TypeError, match=r"initial_state.denominator has dtype int32"):
        wkv4(**{**drawn, "initial_state": (part, part.int(), part)})
