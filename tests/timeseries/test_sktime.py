"""The sktime estimators: sktime's own contract, and what it does not ask."""

from __future__ import annotations

import pickle
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from sktime.datasets import load_airline, load_longley
from sktime.utils.estimator_checks import check_estimator

from scanweave.core import ConfigError, DataError
from scanweave.timeseries.quantiles import at_levels
from scanweave.timeseries.sktime import ScanForecaster, TPGNForecaster, TSM2Forecaster

ESTIMATORS = [TPGNForecaster, ScanForecaster, TSM2Forecaster]


@pytest.mark.filterwarnings("ignore")
# The others are TPGNForecaster but for their network: their 700 checks each are run with the slow tests.
@pytest.mark.parametrize(
    "estimator", [TPGNForecaster, *(pytest.param(other, marks=pytest.mark.slow) for other in ESTIMATORS[1:])]
)
def test_sktime_contract(estimator) -> None:
    results = check_estimator(estimator, raise_exceptions=False, verbose=False)
    failed = {name: result for name, result in results.items() if result != "PASSED"}
    assert not failed
    assert len(results) > 600


@pytest.fixture
def airline() -> pd.Series:
    return load_airline()


def small(estimator, **options):
    return estimator(**{**estimator.get_test_params()[0], **options})


def test_tpgn_beats_the_seasonal_naive_rule(airline) -> None:
    forecast = TPGNForecaster(sp=12).fit(airline[:-24], fh=range(1, 25)).predict()
    naive = np.tile(airline[-36:-24].to_numpy(), 2)
    truth = airline[-24:].to_numpy()
    assert np.abs(forecast.to_numpy() - truth).mean() < 0.8 * np.abs(naive - truth).mean()


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_fit_is_repeatable_and_leaves_random_state_and_logging_alone(airline, estimator) -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", module="lightning")
        first = small(estimator).fit(airline, fh=[1, 2]).predict()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    assert first.equals(small(estimator).fit(airline, fh=[1, 2]).predict())
    assert not first.equals(small(estimator, random_state=1).fit(airline, fh=[1, 2]).predict())


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_pickle_and_update(airline, estimator) -> None:
    forecaster = small(estimator).fit(airline[:-12], fh=[1, 3])
    again = pickle.loads(pickle.dumps(forecaster))
    assert again.predict().equals(forecaster.predict())
    weights = [p.clone() for p in forecaster.network_.parameters()]
    forecaster.update(airline[-12:-6], update_params=False)
    assert all(torch.equal(a, b) for a, b in zip(weights, forecaster.network_.parameters(), strict=True))
    assert list(forecaster.predict().index) == [airline.index[-6], airline.index[-4]]
    forecaster.update(airline[-6:], update_params=True)
    assert not all(torch.equal(a, b) for a, b in zip(weights, forecaster.network_.parameters(), strict=True))
    assert forecaster.predict().index[0] == airline.index[-1] + 1


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_exogenous_future_is_read_and_asked_for(estimator) -> None:
    y, X = load_longley()
    forecaster = small(estimator).fit(y[:-3], X=X[:-3], fh=[1, 2, 3])
    forecast = forecaster.predict(X=X[-3:])
    changed = X[-3:].copy()
    changed.iloc[-1] *= 1.1
    assert not forecaster.predict(X=changed).equals(forecast)
    with pytest.raises(DataError, match="needs its future rows"):
        forecaster.predict()


def test_missing_values_are_left_out(airline) -> None:
    holes = airline.copy()
    holes.iloc[[3, 50, 51, -2]] = np.nan
    filled = small(TPGNForecaster).fit(holes, fh=[1, 2])
    interval = filled.predict_interval(coverage=0.8)
    assert np.isfinite(interval.to_numpy()).all()
    assert interval.shape == (2, 2)


def test_too_short_series_are_refused_with_the_length_that_would_do(airline) -> None:
    with pytest.raises(DataError, match=r"y has 10 rows, expected at least lookback \+ horizon = 8 \+ 4 = 12"):
        TPGNForecaster(lookback=8).fit(airline[:10], fh=[4])


def test_point_forecasters_offer_no_quantiles(airline) -> None:
    forecaster = small(TPGNForecaster, quantiles=()).fit(airline, fh=[1])
    assert forecaster.get_tag("capability:pred_int") is False
    with pytest.raises(NotImplementedError):
        forecaster.predict_interval()


def test_other_levels_are_read_off_between_the_trained_ones() -> None:
    from statistics import NormalDist

    levels, wanted = (0.1, 0.3, 0.5, 0.9), [0.01, 0.1, 0.2, 0.4, 0.5, 0.95]
    true = np.array([NormalDist(3, 2).inv_cdf(level) for level in levels])
    expected = [NormalDist(3, 2).inv_cdf(level) for level in wanted]
    np.testing.assert_allclose(at_levels(true, levels, wanted), expected, rtol=1e-9)
    assert at_levels(true, levels, [0.0, 1.0]).tolist() == [-np.inf, np.inf]
    assert at_levels(np.array([4.0]), (0.5,), [0.1, 0.9]).tolist() == [4.0, 4.0]
    with pytest.raises(ConfigError, match="expected levels from 0 to 1"):
        at_levels(true, levels, [1.5])
