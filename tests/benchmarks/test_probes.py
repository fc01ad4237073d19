"""What the mixers keep track of: parity, sums, permutations and pairs, at up to 256 steps after training at 40.

In small, what Grazzi et al., Unlocking state-tracking in linear RNNs through negative eigenvalues (2024), table 2, and
Siems et al., DeltaProduct (2025), figure 4, report: the best of up to three seeds.
"""

from __future__ import annotations

import pytest

from tests.probes.table import Row, show
from tests.probes.tasks import Task, counting, recall, symmetric
from tests.probes.train import Probe

# It trains for minutes; not a matter of speed, but printed by the same command as the tables of times.
pytestmark = [pytest.mark.bench, pytest.mark.slow, pytest.mark.timeout(3600)]


def _delta(task: Task, householders: int, eigenvalues: str, steps: int = 800) -> Probe:
    """Return a probe of the delta rule, without the convolutions that would blur the tokens."""
    arguments = {"householders": householders, "eigenvalues": eigenvalues, "head_dim": 16, "d_conv": 1}
    return Probe(task, "deltaproduct", arguments, steps=steps, batch=64)


def _solved(row: Row, least: float = 1.0) -> bool:
    return min(row.accuracies) >= least


def test_parity() -> None:
    parity = counting(2)
    mixers = ("deltanet", 600, {"head_dim": 16}), ("mamba", 800, {})
    probes = [
        Probe(parity, name, {"eigenvalues": eigenvalues, "d_conv": 1, **options}, steps=steps, batch=64)
        for name, steps, options in mixers
        for eigenvalues in ("signed", "positive")
    ]
    found = [_solved(row) for row in show("parity", probes)]
    assert found == [True, False, True, False]


def test_permutations() -> None:
    S3 = symmetric(3)
    probes = [_delta(S3, *kind, 1500) for kind in ((2, "signed"), (1, "signed"), (1, "positive"))]
    found = [_solved(row, 0.99) for row in show("word problem of S3", probes)]
    assert found == [True, False, False]


def test_counting() -> None:
    probes = [_delta(counting(3), n, "signed", 1500) for n in (2, 1)]
    two, one = (row.accuracies[-1] for row in show("sum modulo 3", probes))
    assert two > one + 0.3


def test_recall() -> None:
    task = recall(16, 16)
    probes = [
        Probe(task, name, arguments, dim=64, depth=2, batch=64, steps=1000, shortest=6, longest=48, rate=3e-3)
        for name, arguments in (("deltanet", {}), ("gla", {}), ("lru", {}))
    ]
    deltanet, gla, lru = (row.accuracies[-1] for row in show("recall", probes, (24, 48)))
    assert min(deltanet, gla) > lru + 0.2
