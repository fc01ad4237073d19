"""PGN against its definition, TPGN against grouped convolutions, and every shape a series can have."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from scanweave.core import ConfigError
from scanweave.timeseries.forecasters.pgn import PGN, _GatedBand
from scanweave.timeseries.forecasters.tpgn import TPGNNetwork

from .reference_tpgn import ConvolutionTPGN
from .windows import make_batch, make_spec


def pgn_by_definition(pgn: PGN, values: torch.Tensor, shared: torch.Tensor) -> torch.Tensor:
    """The equations of PGN's docstring, step by step."""
    channels, length, _ = values.shape
    x = torch.cat((values.unsqueeze(1), shared.expand(channels, -1, -1, -1)), dim=1)
    window, zeros = pgn.window, torch.zeros_like(x[:, :, :1]).repeat(1, 1, pgn.window, 1)
    padded = torch.cat((zeros, x), dim=2)
    steps = []
    for t in range(length):
        past = padded[:, :, t : t + window]
        history = torch.bmm(pgn.history_weight, past.flatten(1, 2)) + pgn.history_bias
        joined = torch.cat((x[:, :, t], history), dim=1)
        gates = torch.bmm(pgn.gate_weight, joined) + pgn.gate_bias
        gate, candidate = gates.chunk(2, dim=1)
        gate = torch.sigmoid(gate)
        steps.append(gate * history + (1 - gate) * torch.tanh(candidate))
    return torch.stack(steps, dim=2)


@pytest.mark.parametrize(
    ("channels", "length", "hidden", "shared", "window"),
    [(1, 7, 2, 4, None), (3, 5, 4, 2, None), (2, 6, 3, 0, 2), (1, 1, 2, 3, None), (2, 2, 1, 1, None)],
)
def test_pgn_is_its_definition(channels: int, length: int, hidden: int, shared: int, window: int | None) -> None:
    torch.manual_seed(0)
    pgn = PGN(length, hidden, channels=channels, shared=shared, window=window).double()
    values = torch.randn(channels, length, 9, dtype=torch.float64, requires_grad=True)
    joint = torch.randn(shared, length, 9, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(channels, hidden, length, 9, dtype=torch.float64)
    wanted = [*pgn.parameters(), values] + ([joint] if shared else [])
    fast = pgn(values, joint)
    slow = pgn_by_definition(pgn, values, joint)
    torch.testing.assert_close(fast, slow, rtol=1e-12, atol=1e-12)
    ours = torch.autograd.grad((fast * weight).sum(), wanted, materialize_grads=True)
    theirs = torch.autograd.grad((slow * weight).sum(), wanted, materialize_grads=True)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_gated_band_has_right_gradients() -> None:
    torch.manual_seed(0)
    shapes = [(2, 12, 4), (24, 9), (2, 4, 5), (9, 5)]
    inputs = [torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    assert torch.autograd.gradcheck(_GatedBand.apply, inputs)


def test_pgn_sees_no_later_step() -> None:
    torch.manual_seed(0)
    pgn = PGN(6, 3, channels=2, shared=2)
    values, shared = torch.randn(2, 6, 4), torch.randn(2, 6, 4)
    before = pgn(values, shared)
    values[:, 4:] += 1
    shared[:, 4:] -= 1
    after = pgn(values, shared)
    assert torch.equal(before[:, :, :4], after[:, :, :4])
    assert not torch.allclose(before[:, :, 4], after[:, :, 4])


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize(
    ("channels", "hidden", "lookback", "horizon"), [(1, 2, 168, 168), (7, 8, 96, 48), (2, 5, 24, 72)]
)
def test_equals_grouped_convolutions(channels: int, hidden: int, lookback: int, horizon: int, norm: bool) -> None:
    torch.manual_seed(0)
    spec = make_spec(channels=channels, lookback=lookback, horizon=horizon)
    fast = TPGNNetwork(spec, hidden_size=hidden, norm=norm)
    slow = ConvolutionTPGN(spec, hidden, norm)
    slow.copy_from(fast)
    batch = make_batch(spec)
    ours, theirs = fast(batch), slow(batch)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    ours.square().sum().backward()
    theirs.square().sum().backward()
    torch.testing.assert_close(
        fast.pgn.gate_weight.grad.flatten(), slow.pgn.gate.weight.grad.flatten(), rtol=1e-4, atol=1e-5
    )
    row = fast.row_weight.grad.permute(0, 3, 1, 2).flatten()
    torch.testing.assert_close(row, slow.row.weight.grad.flatten(), rtol=1e-4, atol=1e-4)


def test_is_initialised_as_convolutions_are() -> None:
    torch.manual_seed(0)
    spec = make_spec(lookback=168, horizon=168, channels=3)
    fast, slow = TPGNNetwork(spec, hidden_size=64), ConvolutionTPGN(spec, 64, True)
    reference = ConvolutionTPGN(spec, 64, True)
    reference.copy_from(fast)
    for (name, ours), theirs in zip(reference.named_parameters(), slow.parameters(), strict=True):
        ours, theirs = ours.detach(), theirs.detach()
        assert ours.abs().max().item() == pytest.approx(theirs.abs().max().item(), rel=0.06), name
        assert ours.std().item() == pytest.approx(theirs.std().item(), rel=0.12), name


@pytest.mark.parametrize(
    ("lookback", "horizon", "period"),
    [
        (168, 168, 24),
        (100, 50, 24),
        (24, 24, 24),
        (25, 1, 24),
        (10, 30, 24),
        (1, 1, 24),
        (1, 5, 1),
        (36, 7, 12),
        (60, 13, 52),
    ],
)
def test_any_lookback_horizon_and_period(lookback: int, horizon: int, period: int) -> None:
    spec = make_spec(lookback=lookback, horizon=horizon, period=period, channels=2, known=1, covariates=2, marks=3)
    network = TPGNNetwork(spec, hidden_size=3, future_marks=True)
    forecast = network(make_batch(spec))
    assert forecast.shape == (5, horizon, 2)
    assert torch.isfinite(forecast).all()
    forecast.square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters())


def test_incomplete_first_row_is_completed_from_the_next() -> None:
    torch.manual_seed(0)
    whole, cut = make_spec(lookback=72, horizon=30), make_spec(lookback=60, horizon=30)
    large, small = TPGNNetwork(whole, norm=False), TPGNNetwork(cut, norm=False)
    small.load_state_dict(large.state_dict())
    batch = make_batch(whole)
    for name in ("past", "marks"):
        batch[name][:, :12] = batch[name][:, 24:36]
    short = {**batch, "past": batch["past"][:, 12:], "marks": batch["marks"][:, 12:]}
    torch.testing.assert_close(small(short), large(batch))


def test_channels_do_not_mix() -> None:
    spec = make_spec(channels=3)
    network, batch = TPGNNetwork(spec, hidden_size=4), make_batch(spec)
    before = network(batch)
    batch["past"][:, :, 1] += torch.randn(5, 48)
    changed = (network(batch) != before).any(0).any(0)
    assert changed.tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("future_marks", "name", "reaches"), [(False, "marks", False), (True, "marks", True), (False, "known", True)]
)
def test_what_the_head_knows_of_the_horizon(future_marks: bool, name: str, reaches: bool) -> None:
    spec = make_spec(known=1, horizon=30)
    network, batch = TPGNNetwork(spec, future_marks=future_marks), make_batch(spec)
    before = network(batch)
    batch[name] = batch[name].clone()
    batch[name][:, -1] += 1
    assert (not torch.equal(network(batch), before)) == reaches


def test_covariates_and_past_marks_are_read() -> None:
    spec = make_spec(covariates=2)
    network, batch = TPGNNetwork(spec), make_batch(spec)
    before = network(batch)
    for name in ("covariates", "marks"):
        changed = {**batch, name: batch[name] + 1}
        assert not torch.allclose(network(changed), before)


def test_refuses_sizes_that_make_no_grid() -> None:
    with pytest.raises(ConfigError, match=r"period 0 .* expected both at least 1"):
        TPGNNetwork(make_spec(), period=0)


def test_compiles_and_exports() -> None:
    spec = make_spec()
    network, batch = TPGNNetwork(spec).eval(), make_batch(spec)
    inputs = {name: batch[name] for name in ("past", "marks", "covariates", "known")}
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    forecast, eager = compiled(inputs), network(inputs)
    torch.testing.assert_close(forecast, eager)
    parameters = list(network.parameters())
    ours = torch.autograd.grad(forecast.square().sum(), parameters)
    theirs = torch.autograd.grad(eager.square().sum(), parameters)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)
    with torch.no_grad():
        exported = torch.export.export(network, (inputs,))
    torch.testing.assert_close(exported.module()(inputs), network(inputs))


def test_a_step_of_training_lowers_the_loss() -> None:
    torch.manual_seed(0)
    spec = make_spec()
    network, batch = TPGNNetwork(spec, hidden_size=4), make_batch(spec, 32)
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    losses = []
    for _ in range(20):
        loss = nn.functional.mse_loss(network(batch), batch["future"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.97 * losses[0]
