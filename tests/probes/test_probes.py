"""The languages of the probes, and that training on them is a function of the seed."""

from __future__ import annotations

import math
from itertools import permutations

import pytest
import torch

from .tasks import IGNORED, Task, arithmetic, counting, recall, symmetric
from .train import Probe, accuracy, train


def _draw(task: Task, batch: int = 16, length: int = 21) -> tuple[list[list[int]], list[list[int]]]:
    tokens, targets = task.draw(batch, length, torch.Generator().manual_seed(0))
    assert tokens.shape == targets.shape == (batch, length)
    assert 0 <= tokens.min() <= tokens.max() < task.tokens
    assert targets[targets != IGNORED].max() < task.classes
    return tokens.tolist(), targets.tolist()


@pytest.mark.parametrize("modulus", [2, 5])
def test_counting(modulus: int) -> None:
    for tokens, targets in zip(*_draw(counting(modulus)), strict=True):
        assert targets == [sum(tokens[: t + 1]) % modulus for t in range(len(tokens))]


@pytest.mark.parametrize("things", [3, 5])
def test_symmetric(things: int) -> None:
    elements = list(permutations(range(things)))
    task = symmetric(things)
    assert task.tokens == task.classes == math.factorial(things)
    for tokens, targets in zip(*_draw(task), strict=True):
        arrangement = tuple(range(things))
        for token, target in zip(tokens, targets, strict=True):
            arrangement = tuple(elements[token][i] for i in arrangement)
            assert elements[target] == arrangement


@pytest.mark.parametrize("modulus", [3, 5])
def test_arithmetic(modulus: int) -> None:
    for tokens, targets in zip(*_draw(arithmetic(modulus)), strict=True):
        text = [str(token) if token < modulus else "+-*"[token - modulus] for token in tokens]
        for t, target in enumerate(targets):
            assert target == (IGNORED if t % 2 else eval("".join(text[: t + 1])) % modulus)


def test_recall() -> None:
    keys, values = 9, 4
    for tokens, targets in zip(*_draw(recall(keys, values)), strict=True):
        pairs = len(tokens) // 3
        told = {tokens[2 * i]: tokens[2 * i + 1] - keys for i in range(pairs)}
        assert len(told) == pairs
        assert targets == [IGNORED] * 2 * pairs + [told[key] for key in tokens[2 * pairs :]]


def test_recall_needs_a_key_for_each_pair() -> None:
    with pytest.raises(ValueError, match="makes 4 pairs, expected 1 to 3"):
        recall(3, 2).draw(1, 12, torch.Generator())


def test_training_learns_and_repeats() -> None:
    # The last token decides: any mixer that lets it through learns that.
    task = Task("echo", 3, 3, lambda batch, length, g: (torch.randint(3, (batch, length), generator=g),) * 2)
    probe = Probe(task, "mingru", dim=8, steps=60, batch=16, longest=8, rate=3e-2)
    network, loss = train(probe, 0)
    assert train(probe, 0)[1] == loss
    assert accuracy(network, task, 32, after=8) == 1.0
