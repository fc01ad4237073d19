"""The matrix-state ops beyond the op contract: what they compute by hand, how they relate, and long sequences."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from scanweave.kernels import MLSTMState, delta_rule, dplr_scan, gated_linear_attention, mlstm_scan

from .contract import BACKWARD_BOUND, FORWARD_BOUND, Case, assert_close, backends, draw_reset, expected, gradients
from .table import CASES
from .table.matrix_state import H, K, V

FAMILY = [name for name in CASES if name.startswith(("gated_linear_attention", "delta_rule", "dplr_scan"))]
OPS = [CASES[name] for name in ("gated_linear_attention", "delta_rule", "dplr_scan")]
LONG = [
    pytest.param(CASES[name], backend, id=f"{name}-{backend}")
    for name in ("gated_linear_attention", "gated_linear_attention-rows", "delta_rule")
    for backend in backends(CASES[name])
    if backend != "triton" or torch.cuda.is_available()
]
every_backend = pytest.mark.parametrize("backend", [*backends(OPS[0]), "reference"])
# Triton's interpreter takes seconds for each call with gradients.
compiled = pytest.mark.parametrize(
    "backend", [name for name in backends(OPS[0]) if name != "triton" or torch.cuda.is_available()]
)


def _assert_matches(case: Case, backend: str, length: int) -> None:
    wanted = expected(case.name, 0, length, torch.float32)
    drawn = case.draw(length, dtype=torch.float32)
    o, final, grads = gradients(case, drawn, reset=draw_reset(length), backend=backend, **case.variants[0])
    assert_close(o, wanted[0], FORWARD_BOUND[torch.float32], "o")
    assert_close(final, wanted[1], FORWARD_BOUND[torch.float32], "final_state")
    for name, gradient in wanted[2].items():
        assert_close(grads[name], gradient, BACKWARD_BOUND[torch.float32], f"gradient of {name}")


@pytest.mark.parametrize("length", [1009, 4097])
@pytest.mark.parametrize(("case", "backend"), LONG)
def test_long_sequences(case: Case, backend: str, length: int) -> None:
    _assert_matches(case, backend, length)


@pytest.mark.skipif("triton" not in backends(OPS[0]), reason="Triton does not serve here, nor does its interpreter")
@pytest.mark.parametrize("name", [name for name in [*FAMILY, "mlstm_scan"] if CASES[name].interpreted < 65])
def test_triton_matches_the_reference(name: str) -> None:
    """The rows that Triton's interpreter does not get through the whole contract with."""
    _assert_matches(CASES[name], "triton", 65)


@every_backend
def test_recalls_what_stands_under_orthogonal_keys(backend: str) -> None:
    """With beta = 1 a value replaces what its key held; attention without decay adds to it."""
    keys = torch.eye(4)[[0, 1, 2, 3, 0]].view(1, 5, 1, 4)
    values = torch.arange(15.0).view(1, 5, 1, 3)
    one = torch.ones(1, 5, 1)
    o, state = delta_rule(keys, keys, values, one, scale=1.0, backend=backend)
    assert torch.equal(o, values)
    assert torch.equal(state[0, 0], values[0, [4, 1, 2, 3], 0])
    o, state = gated_linear_attention(keys, keys, values, torch.zeros(1), scale=1.0, backend=backend)
    assert torch.equal(o[:, :4], values[:, :4])
    assert torch.equal(state[0, 0, 0], values[0, 0, 0] + values[0, 4, 0])


@every_backend
def test_two_reflections_rotate(backend: str) -> None:
    """beta = 2 reflects the state, and two reflections in a step turn it: by 90 degrees for keys 45 degrees apart."""
    angles = torch.tensor([0.0, torch.pi / 4])
    keys = torch.stack([angles.cos(), angles.sin()], -1).view(1, 1, 2, 1, 2).expand(1, 4, 2, 1, 2)
    query = torch.tensor([1.0, 0.0]).expand(1, 4, 1, 2)
    start = torch.eye(2).view(1, 1, 2, 2)
    zeros, twos = torch.zeros(1, 4, 2, 1, 2), torch.full((1, 4, 2, 1), 2.0)
    o, state = delta_rule(query, keys, zeros, twos, scale=1.0, initial_state=start, backend=backend)
    turns = torch.tensor([[0.0, -1.0], [-1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    torch.testing.assert_close(o.view(4, 2), turns, atol=1e-6, rtol=0)
    torch.testing.assert_close(state, start, atol=1e-6, rtol=0)


@every_backend
def test_one_decay_per_head_is_one_per_row(backend: str) -> None:
    drawn = CASES["gated_linear_attention-bonus"].draw(40, dtype=torch.float32)
    per_head = drawn.pop("log_decay")[..., 0]
    options = {"reset": draw_reset(40), "backend": backend}
    found = gated_linear_attention(**drawn, log_decay=per_head, **options)
    wanted = gated_linear_attention(**drawn, log_decay=per_head.unsqueeze(-1).expand(-1, -1, -1, K), **options)
    for one, other in zip(found, wanted, strict=True):
        assert_close(one, other, 1e-6, "one decay per head")


@every_backend
def test_the_delta_rule_is_diagonal_plus_rank_one(backend: str) -> None:
    drawn = CASES["delta_rule"].draw(40, dtype=torch.float32)
    q, k, v, beta = (drawn[name] for name in ("q", "k", "v", "beta"))
    options = {"initial_state": drawn["initial_state"], "reset": draw_reset(40), "backend": backend}
    strength, decay = beta.unsqueeze(-1), -torch.rand(2, 40, H, generator=torch.Generator().manual_seed(5))
    found = delta_rule(q, k, v, beta, decay, **options)
    rows, a = decay.unsqueeze(-1).expand_as(k), -decay.exp().unsqueeze(-1) * k
    wanted = dplr_scan(q, strength * k, v, a, strength * k, rows, **options)
    for one, other in zip(found, wanted, strict=True):
        assert_close(one, other, 1e-5, "dplr_scan")


@pytest.mark.parametrize("case", OPS, ids=lambda case: case.name)
@compiled
def test_keys_may_be_shared_by_heads(case: Case, backend: str) -> None:
    drawn = case.draw(30, dtype=torch.float32)
    shared = {name: drawn[name][:, :, :1].expand(-1, -1, H, -1) for name in ("q", "k")}
    plain = {name: t.contiguous() for name, t in shared.items()}
    for one, other in zip(
        gradients(case, drawn | shared, backend=backend)[:2],
        gradients(case, drawn | plain, backend=backend)[:2],
        strict=True,
    ):
        assert_close(one, other, 1e-6, "expanded heads")


@pytest.mark.parametrize("name", FAMILY)
@compiled
def test_gates_may_stay_in_float32(name: str, backend: str) -> None:
    case = CASES[name]
    half = case.draw(20, dtype=torch.bfloat16)
    gates = {n: half[n].float() for n in ("log_decay", "beta") if n in half}
    mixed, plain = gradients(case, half | gates, backend=backend), gradients(case, half, backend=backend)
    assert mixed[0].dtype == torch.bfloat16
    assert torch.equal(mixed[0], plain[0])
    for gate in gates:
        assert mixed[2][gate].dtype == torch.float32
        assert_close(mixed[2][gate], plain[2][gate], 1e-2, gate)


@pytest.mark.parametrize("name", ["gated_linear_attention", "gated_linear_attention-rows"])
def test_strong_decays_leave_small_gradients_right(name: str) -> None:
    """Where every decay is e^-30 its gradients are as small, so that no difference of larger numbers gives them."""
    case = CASES[name]
    drawn = case.draw(50)
    drawn["log_decay"] = torch.full_like(drawn["log_decay"], -30)
    wanted = gradients(case, drawn, backend="reference")[2]["log_decay"]
    found = gradients(case, {n: t.float() for n, t in drawn.items()}, backend="chunked")[2]["log_decay"]
    assert wanted.abs().max() < 1e-9
    assert_close(found, wanted, 1e-5, "gradient of log_decay")


@every_backend
def test_an_mlstm_forgets_by_its_gates(backend: str) -> None:
    """A huge input gate drowns what came before; a closed forget gate drops it; the hidden state stays a mean."""
    one = torch.ones(1, 4, 1, 1)
    v = torch.tensor([1.0, 3.0, 100.0, 5.0]).view(1, 4, 1, 1)
    open_, equal = torch.full((1, 4, 1), 90.0), torch.zeros(1, 4, 1)
    h, state = mlstm_scan(one, one, v, equal, open_, backend=backend)
    torch.testing.assert_close(h.flatten(), torch.tensor([1.0, 2.0, 104 / 3, 109 / 4]))
    assert state.n.item() == 4
    gates = torch.tensor([0.0, 0.0, 80.0, 0.0]).view(1, 4, 1)
    h, state = mlstm_scan(one, one, v, gates, open_, backend=backend)
    torch.testing.assert_close(h.flatten(), torch.tensor([1.0, 2.0, 100.0, 100.0]))
    assert state.m.item() == 80
    h, _ = mlstm_scan(one, one, v, equal, -open_, backend=backend)
    torch.testing.assert_close(h.flatten(), v.flatten())


@every_backend
def test_an_mlstm_state_is_checked_part_by_part(backend: str) -> None:
    drawn = CASES["mlstm_scan"].draw(8, dtype=torch.float32)
    del drawn["initial_state"]
    parts = torch.zeros(2, H, K, V), torch.zeros(2, H, K), torch.zeros(2, H)
    _, final = mlstm_scan(**drawn, initial_state=parts, backend=backend)
    assert isinstance(final, MLSTMState)
    with pytest.raises(TypeError, match="initial_state is a Tensor, expected the three tensors"):
        mlstm_scan(**drawn, initial_state=parts[0], backend=backend)
    with pytest.raises(ValueError, match=r"mlstm_scan: initial_state.n has shape \(2, 2\), expected \(B, H, K\)"):
        mlstm_scan(**drawn, initial_state=(parts[0], parts[2], parts[2]), backend=backend)
    with pytest.raises(TypeError, match=r"initial_state.m has dtype int64"):
        mlstm_scan(**drawn, initial_state=(*parts[:2], parts[2].long()), backend=backend)


@pytest.mark.parametrize("name", [*FAMILY, "mlstm_scan"])
@compiled
def test_an_empty_batch(name: str, backend: str) -> None:
    case = CASES[name]
    drawn = case.draw(20, batch=0, dtype=torch.float32)
    o, final, grads = gradients(case, drawn, reset=draw_reset(20, 0), backend=backend)
    assert o.shape[:3] == (0, 20, H)
    assert final.shape == drawn["initial_state"].shape
    assert all(grads[n].shape == t.shape for n, t in drawn.items())


def test_parallel_steps_do_not_normalise_keys() -> None:
    """Keys are used as given: twice the key writes twice, and reads twice in the correction."""
    drawn = CASES["delta_rule"].draw(8)
    o, _ = delta_rule(**drawn, backend="reference")
    scaled = drawn | {"k": 2 * drawn["k"], "beta": drawn["beta"] / 4, "v": 2 * drawn["v"]}
    torch.testing.assert_close(delta_rule(**scaled, backend="reference")[0], o)
    normed = F.normalize(scaled["k"], dim=-1)
    assert not torch.allclose(delta_rule(**scaled | {"k": normed}, backend="reference")[0], o)
