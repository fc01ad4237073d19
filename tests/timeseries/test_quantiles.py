"""Losses, quantile order, conformal calibration and their metrics."""

from __future__ import annotations

import pytest
import torch
from sklearn.metrics import mean_pinball_loss

from scanweave.core import ConfigError
from scanweave.timeseries.losses import MaskedLoss
from scanweave.timeseries.metrics import Coverage, Residuals
from scanweave.timeseries.quantiles import ConformalOffsets, check_quantiles, uncross

LEVELS = (0.1, 0.5, 0.8)


@pytest.mark.parametrize("name", ["mse", "mae", "pinball"])
def test_unobserved_values_have_no_loss_and_no_gradient(name: str) -> None:
    torch.manual_seed(0)
    loss = MaskedLoss(name, LEVELS if name == "pinball" else ())
    forecast = torch.randn(4, 6, 2, *([3] if name == "pinball" else []), requires_grad=True)
    truth, mask = torch.randn(4, 6, 2), torch.rand(4, 6, 2) > 0.4
    truth = torch.where(mask, truth, torch.nan)
    value = loss(forecast, truth, mask)
    value.backward()
    torch.testing.assert_close(value, loss(forecast[mask].unsqueeze(0), truth[mask].unsqueeze(0)))
    assert torch.isfinite(forecast.grad).all()
    assert (forecast.grad[~mask] == 0).all()
    assert loss(forecast, truth, torch.zeros_like(mask)) == 0


def test_pinball_agrees_with_scikit_learn() -> None:
    torch.manual_seed(0)
    forecast, truth = torch.randn(5, 7, 1, 3), torch.randn(5, 7, 1)
    expected = [mean_pinball_loss(truth.flatten(), forecast[..., i].flatten(), alpha=a) for i, a in enumerate(LEVELS)]
    assert MaskedLoss("pinball", LEVELS)(forecast, truth).item() == pytest.approx(sum(expected) / 3, rel=1e-5)


@pytest.mark.parametrize(("name", "levels"), [("mse", LEVELS), ("pinball", ()), ("rmse", ())])
def test_losses_that_do_not_fit_are_refused(name: str, levels: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="pinball"):
        MaskedLoss(name, levels)


@pytest.mark.parametrize("levels", [(0.0, 0.5), (0.5, 0.5), (0.9, 0.1), (1.2,)])
def test_impossible_levels_are_refused(levels: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="quantiles: found"):
        check_quantiles(levels)


@pytest.mark.parametrize("levels", [(0.1, 0.5, 0.9), (0.2, 0.4), (0.7,), (0.05, 0.1, 0.6, 0.9)])
def test_quantiles_never_cross_and_the_middle_is_free(levels: tuple[float, ...]) -> None:
    raw = 10 * torch.randn(100, len(levels), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ordered = uncross(raw, levels)
    assert (ordered.diff(dim=-1) > 0).all()
    middle = min(range(len(levels)), key=lambda i: abs(levels[i] - 0.5))
    assert torch.equal(ordered[:, middle], raw[:, middle])


def test_calibration_gives_the_nominal_coverage_on_new_data() -> None:
    draw = torch.Generator().manual_seed(0)
    truth = torch.randn(6000, 3, 2, generator=draw) * torch.tensor([1.0, 2.0, 5.0]).view(1, 3, 1)
    forecast = torch.tensor([-0.1, 0.0, 0.1]).expand(6000, 3, 2, 3)
    offsets = ConformalOffsets(3, 2, (0.1, 0.5, 0.9))
    offsets.calibrate(truth[:3000].unsqueeze(-1) - forecast[:3000])
    calibrated = offsets(forecast[3000:])
    later = truth[3000:]
    before = ((forecast[3000:, ..., 0] <= later) & (later <= forecast[3000:, ..., 2])).float().mean((0, 2))
    after = ((calibrated[..., 0] <= later) & (later <= calibrated[..., 2])).float().mean((0, 2))
    assert (before < 0.1).all()
    assert ((after - 0.8).abs() < 0.025).all()
    assert torch.equal(calibrated[..., 1], forecast[3000:, ..., 1])


def test_calibration_takes_the_stated_order_statistic() -> None:
    residuals = torch.arange(1.0, 10.0).view(9, 1, 1, 1).repeat(1, 1, 1, 2)[torch.randperm(9)]
    offsets = ConformalOffsets(1, 1, (0.2, 0.9))
    offsets.calibrate(residuals)
    assert offsets.shift.flatten().tolist() == [2.0, 9.0]  # floor(10 * 0.2), ceil(10 * 0.9)
    mask = torch.ones(9, 1, 1, dtype=torch.bool)
    mask[residuals[..., 0] > 4] = False
    offsets.calibrate(residuals, mask)
    assert offsets.shift.flatten().tolist() == [1.0, 4.0]
    offsets.calibrate(residuals, torch.zeros_like(mask))
    assert offsets.shift.flatten().tolist() == [0.0, 0.0]


def test_shifts_are_kept_with_the_weights_and_keep_the_order() -> None:
    offsets = ConformalOffsets(2, 1, LEVELS)
    offsets.shift.copy_(torch.tensor([3.0, 0.0, -4.0]))
    again = ConformalOffsets(2, 1, LEVELS)
    again.load_state_dict(offsets.state_dict())
    forecast = torch.tensor([0.0, 1.0, 2.0]).expand(4, 2, 1, 3)
    assert torch.equal(again(forecast), offsets(forecast))
    assert (again(forecast).diff(dim=-1) >= 0).all()


def test_coverage_counts_both_ends() -> None:
    coverage = Coverage()
    quantiles = torch.tensor([[0.0, 0.5, 1.0]]).repeat(5, 1)
    coverage.update(quantiles[:2], torch.tensor([0.0, 1.0]))
    coverage.update(quantiles[2:], torch.tensor([-0.1, 0.5, 1.1]))
    assert coverage.compute().item() == pytest.approx(0.6)


@pytest.mark.parametrize("sizes", [[5, 5, 5], [1] * 15, [15], [7, 8]])
def test_residuals_are_thinned_evenly_whatever_the_batches(sizes: list[int]) -> None:
    residuals = Residuals(limit=4)
    truth = torch.arange(15.0).view(15, 1, 1)
    for part in truth.split(sizes):
        residuals.update(torch.zeros(len(part), 1, 1, 2), part)
    kept, mask = residuals.compute()
    assert kept[..., 0].flatten().tolist() == [0, 4, 8, 12]
    assert mask.all()
    residuals.reset()
    residuals.update(torch.zeros(2, 1, 1, 2), truth[:2])
    assert residuals.compute()[0].shape == (2, 1, 1, 2)
