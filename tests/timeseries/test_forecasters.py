"""What holds for every forecasting network, and what each control computes."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from scanweave.core import ConfigError, list_mixers
from scanweave.timeseries.forecasters.controls import (
    CalendarLinearNetwork,
    DLinearNetwork,
    LastValueNetwork,
    SeasonalNaiveNetwork,
    WindowMeanNetwork,
)
from scanweave.timeseries.forecasters.patchtst import PatchTSTNetwork
from scanweave.timeseries.forecasters.scan import ScanNetwork
from scanweave.timeseries.forecasters.tpgn import TPGNNetwork
from scanweave.timeseries.forecasters.tsm2 import TSM2Network, WeightedAverage

from .windows import make_batch, make_spec


def small_scan(spec, **options):
    return ScanNetwork(spec, **{"mixer": "mingru", "width": 8, "depth": 1, **options})


def joint_scan(spec, **options):
    return small_scan(spec, independent=False, patch=5, **options)


def small_tsm2(spec, **options):
    return TSM2Network(spec, **{"mixer": "mingru", "width": 8, "depth": 2, "patch": 5, **options})


def small_patchtst(spec, **options):
    return PatchTSTNetwork(spec, **{"width": 8, "depth": 1, "dropout": 0.0, **options})


TRAINED = [
    TPGNNetwork,
    small_scan,
    joint_scan,
    small_tsm2,
    small_patchtst,
    DLinearNetwork,
    CalendarLinearNetwork,
]
RULES = [WindowMeanNetwork, LastValueNetwork, SeasonalNaiveNetwork]
QUANTILES = (0.1, 0.25, 0.5, 0.9)


@pytest.mark.parametrize("make", [*TRAINED, *RULES])
def test_shapes_and_order_of_quantiles(make) -> None:
    torch.manual_seed(0)
    spec = make_spec(channels=3, lookback=53, horizon=31, known=1, covariates=2)
    batch = make_batch(spec)
    assert make(spec)(batch).shape == (5, 31, 3)
    quantiles = make(spec, quantiles=QUANTILES)(batch)
    assert quantiles.shape == (5, 31, 3, 4)
    assert (quantiles.diff(dim=-1) > 0 if make in TRAINED else quantiles.diff(dim=-1) == 0).all()


@pytest.mark.parametrize("make", [*TRAINED, *RULES])
def test_missing_values_are_not_read(make) -> None:
    torch.manual_seed(0)
    spec = make_spec(channels=2)
    network, batch = make(spec), make_batch(spec)
    mask = torch.rand(5, 48, 2) > 0.3
    mask[0, :, 0] = False
    forecasts = []
    for value in (0.0, 1e6, torch.nan):
        past = torch.where(mask, batch["past"], value)
        forecasts.append(network({**batch, "past": past, "past_mask": mask}))
    assert torch.isfinite(forecasts[0]).all()
    assert torch.equal(forecasts[0], forecasts[1])
    assert torch.equal(forecasts[0], forecasts[2])


@pytest.mark.parametrize("make", TRAINED)
def test_normalised_forecasts_follow_level_and_scale(make) -> None:
    torch.manual_seed(0)
    spec = make_spec(channels=2)
    network = make(spec, norm=True, quantiles=QUANTILES).double()
    batch = make_batch(spec, dtype=torch.float64)
    forecast = network(batch)
    moved = network({**batch, "past": 1e3 * batch["past"] + 7})
    torch.testing.assert_close(moved, 1e3 * forecast + 7, rtol=1e-3, atol=1e-1)


@pytest.mark.parametrize("make", TRAINED)
def test_every_parameter_learns_and_constant_series_are_finite(make) -> None:
    spec = make_spec(channels=2, known=1, covariates=1)
    network, batch = make(spec, norm=True), make_batch(spec)
    network(batch).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    network.zero_grad()
    flat = network({**batch, "past": torch.full_like(batch["past"], 3.0)})
    flat.square().sum().backward()
    assert torch.isfinite(flat).all()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters())


def test_rules_are_what_they_say() -> None:
    spec = make_spec(lookback=30, horizon=50, channels=2)
    batch = make_batch(spec)
    past = batch["past"]
    torch.testing.assert_close(WindowMeanNetwork(spec)(batch)[:, 7], past.mean(1))
    assert torch.equal(LastValueNetwork(spec)(batch)[:, 49], past[:, 29])
    naive = SeasonalNaiveNetwork(spec)(batch)
    for step in range(50):
        assert torch.equal(naive[:, step], past[:, 6 + step % 24])
    with pytest.raises(ConfigError, match=r"period is 31, expected 1 to the lookback \(30\)"):
        SeasonalNaiveNetwork(spec, period=31)


def test_dlinear_by_its_definition() -> None:
    spec = make_spec(channels=2)
    network, batch = DLinearNetwork(spec, kernel=5), make_batch(spec)
    expected = torch.empty(5, 24, 2)
    for channel in range(2):
        series = batch["past"][:, :, channel]
        ends = F.pad(series.unsqueeze(1), (2, 2), mode="replicate").squeeze(1)
        trend = torch.stack([ends[:, t : t + 5].mean(1) for t in range(48)], dim=1)
        expected[:, :, channel] = network.trend(trend) + network.remainder(series - trend)
    torch.testing.assert_close(network(batch), expected)
    with pytest.raises(ConfigError, match="kernel is 4, expected an odd number"):
        DLinearNetwork(spec, kernel=4)


def test_calendar_linear_reads_the_last_season_of_marks_alone() -> None:
    spec = make_spec()
    network, batch = CalendarLinearNetwork(spec), make_batch(spec)
    before = network(batch)
    for step, reaches in ((23, False), (24, True), (47, True), (48, False)):
        marks = batch["marks"].clone()
        marks[:, step] += 1
        assert (not torch.equal(network({**batch, "marks": marks}), before)) == reaches, step


@pytest.mark.parametrize("mixer", list_mixers())
def test_scan_runs_on_every_mixer(mixer: str) -> None:
    spec = make_spec(channels=2)
    network = small_scan(spec, mixer=mixer, patch=8)
    forecast = network(make_batch(spec))
    assert forecast.shape == (5, 24, 2)
    forecast.sum().backward()
    assert all(p.grad is not None for p in network.parameters())


def test_scan_channels_share_weights_or_join() -> None:
    torch.manual_seed(0)
    spec = make_spec(channels=3, known=1)
    batch = make_batch(spec)
    swapped = {**batch, "past": batch["past"][:, :, [2, 0, 1]]}
    separate = small_scan(spec)
    torch.testing.assert_close(separate(swapped), separate(batch)[:, :, [2, 0, 1]])
    joint = small_scan(spec, independent=False)
    changed = batch["past"].clone()
    changed[:, 10, 0] += 1
    assert (joint({**batch, "past": changed}) != joint(batch)).any(0).any(0).all()
    assert (separate({**batch, "past": changed}) != separate(batch)).any(0).any(0).tolist() == [True, False, False]


@pytest.mark.parametrize(("name", "reaches"), [("marks", False), ("known", True)])
def test_scan_head_knows_the_horizon(name: str, reaches: bool) -> None:
    spec = make_spec(known=2)
    network, batch = small_scan(spec, future_marks=False), make_batch(spec)
    later = batch[name].clone()
    later[:, 48 + 3] += 1
    changed = (network({**batch, name: later}) != network(batch)).any(0).any(-1)
    assert changed.nonzero().flatten().tolist() == ([3] if reaches else [])


def test_scan_patches_end_with_the_window() -> None:
    spec = make_spec(lookback=10, marks=0)
    network = small_scan(spec, patch=4)
    series = torch.arange(10.0).view(1, 10, 1, 1)
    assert network._patches(series)[0, 0].tolist() == [[0, 0, 0, 1], [2, 3, 4, 5], [6, 7, 8, 9]]
    with pytest.raises(ConfigError, match=r"patch is 11, expected 1 to the lookback \(10\)"):
        small_scan(spec, patch=11)


def test_tsm2_reads_all_variables_in_both_directions() -> None:
    torch.manual_seed(0)
    spec = make_spec(channels=3)
    network, batch = small_tsm2(spec, norm=False).double(), make_batch(spec)
    batch = {name: x.double() if x.is_floating_point() else x for name, x in batch.items()}
    for read, changed in ((0, 2), (2, 0)):
        past = batch["past"].clone().requires_grad_()
        network({**batch, "past": past})[..., read].sum().backward()
        assert past.grad[..., changed].abs().sum() > 0
    alone = small_scan(spec, norm=False).double()
    past = batch["past"].clone().requires_grad_()
    alone({**batch, "past": past})[..., 0].sum().backward()
    assert past.grad[..., 2].abs().sum() == 0


def test_tsm2_averages_what_all_earlier_layers_gave() -> None:
    """Two layers by hand: each mixer's input is a weighted sum over the embedding and every earlier output."""
    torch.manual_seed(0)
    network = small_tsm2(make_spec(channels=2), depth=2).double()
    for average in network.averages:
        torch.nn.init.normal_(average.weight)
    tokens = torch.randn(3, 2, 4, 8, dtype=torch.float64)
    a = [average.weight for average in network.averages]

    def time(layer, x):
        return x + torch.stack([network.time[layer](network.norms[2 * layer](x[:, d]))[0] for d in range(2)], 1)

    def variables(layer, x):
        across = network.norms[2 * layer + 1](x)
        return x + torch.stack([network.variables[layer](across[:, :, n])[0] for n in range(4)], 2)

    first = time(0, a[0][0] * tokens)
    second = variables(0, a[1][0] * tokens + a[1][1] * first)
    third = time(1, a[2][0] * tokens + a[2][1] * first + a[2][2] * second)
    fourth = variables(1, a[3][0] * tokens + a[3][1] * first + a[3][2] * second + a[3][3] * third)
    wanted = sum(w * x for w, x in zip(a[4], (tokens, first, second, third, fourth), strict=True))
    torch.testing.assert_close(network.mix(tokens), network.norms[-1](wanted))


def test_a_weighted_average_starts_with_the_last_input() -> None:
    inputs = [torch.full((2,), value) for value in (1.0, 2.0, 3.0)]
    assert WeightedAverage(3)(inputs).tolist() == [3.0, 3.0]


def test_patchtst_pads_the_end_and_keeps_channels_apart() -> None:
    torch.manual_seed(0)
    spec = make_spec(channels=2, lookback=53)
    network, batch = small_patchtst(spec, norm=False), make_batch(spec)
    assert len(network.positions) == (53 - 16) // 8 + 2
    past = batch["past"].clone().requires_grad_()
    network({**batch, "past": past})[..., 0].sum().backward()
    assert past.grad[..., 1].abs().sum() == 0
    assert (past.grad[:, :, 0].abs().sum(0) > 0).all(), "a step of the window is not read"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda s: small_tsm2(s, depth=0), "TSM2: depth is 0"),
        (lambda s: small_tsm2(s, patch=99), "TSM2: patch is 99, expected 1 to the lookback"),
        (lambda s: small_patchtst(s, stride=17), "PatchTST: stride is 17 and patch is 16"),
        (lambda s: small_patchtst(s, heads=3), r"PatchTST: heads is 3, expected a divisor of width \(8\)"),
    ],
)
def test_sizes_that_do_not_fit_are_named(make, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(make_spec())
