"""The estimators of whole series: sktime's own contract, and what it does not ask."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from sktime.datasets import load_italy_power_demand, load_japanese_vowels, load_unit_test
from sktime.utils.estimator_checks import check_estimator

from scanweave.core import ConfigError
from scanweave.timeseries.sktime import ScanClassifier, ScanRegressor

ESTIMATORS = [ScanClassifier, ScanRegressor]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_sktime_contract(estimator) -> None:
    results = check_estimator(estimator, raise_exceptions=False, verbose=False)
    failed = {name: result for name, result in results.items() if result != "PASSED"}
    assert not failed
    assert len(results) > 100


def small(estimator, **options):
    return estimator(**{**estimator.get_test_params()[0], **options})


def problem(estimator):
    X, y = load_unit_test(split="train")
    return X, y if estimator is ScanClassifier else y.astype(float)


def test_italy_power_demand_is_learned() -> None:
    classifier = ScanClassifier(mixer="mingru", max_epochs=20, min_steps=0, width=32, lr=3e-3)
    classifier.fit(*load_italy_power_demand(split="train"))
    X, y = load_italy_power_demand(split="test")
    assert (classifier.predict(X) == y).mean() > 0.93


def test_regressor_learns_the_slope_in_its_own_units() -> None:
    generator = np.random.default_rng(0)
    slopes = generator.normal(1000, 300, 60)
    X = slopes[:, None, None] * np.linspace(0, 1, 20) + generator.normal(0, 10, (60, 1, 20))
    regressor = ScanRegressor(mixer="mingru", max_epochs=30, min_steps=0, width=16, lr=1e-2).fit(X[:40], slopes[:40])
    assert np.abs(regressor.predict(X[40:]) - slopes[40:]).mean() < 60


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_fit_is_repeatable_survives_pickle_and_leaves_random_state_alone(estimator) -> None:
    X, y = problem(estimator)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    fitted = small(estimator).fit(X, y)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    again, other = small(estimator).fit(X, y), small(estimator, random_state=1).fit(X, y)
    method = "predict_proba" if estimator is ScanClassifier else "predict"
    first = getattr(fitted, method)(X)
    np.testing.assert_array_equal(first, getattr(again, method)(X))
    np.testing.assert_array_equal(first, getattr(pickle.loads(pickle.dumps(fitted)), method)(X))
    assert not np.array_equal(first, getattr(other, method)(X))


def test_unequal_lengths_and_missing_values_are_read_one_by_one_as_together() -> None:
    X, y = load_japanese_vowels(split="train", return_type="df-list")
    X, y = X[::9], y[::9]
    X[0] = X[0].mask(np.arange(X[0].size).reshape(X[0].shape) % 7 == 0)
    classifier = small(ScanClassifier).fit(X, y)
    together = classifier.predict_proba(X)
    alone = np.concatenate([classifier.predict_proba([one]) for one in X])
    np.testing.assert_allclose(alone, together, atol=1e-6)


@pytest.mark.parametrize("names", [("no", "yes"), (False, True), (7, 3)])
def test_labels_come_back_as_they_were_given(names) -> None:
    X, y = load_unit_test(split="train")
    y = np.where(y == y[0], names[0], names[1])
    predicted = small(ScanClassifier).fit(X, y).predict(X)
    assert predicted.dtype == y.dtype
    assert set(predicted) <= set(names)


def test_early_stopping_watches_series_held_out() -> None:
    X, y = load_unit_test(split="train")
    classifier = small(ScanClassifier, max_epochs=200, validation=0.3, patience=1, lr=0.3)
    classifier.fit(X, y)
    with pytest.raises(ConfigError, match="patience is 1, but validation is 0"):
        small(ScanClassifier, patience=1).fit(X, y)
