"""The order of samples: a function of seed and epoch, shared among processes without loss or repetition."""

from __future__ import annotations

import random
from itertools import chain

import numpy as np
import pytest
import torch

from scanweave.core import sampler
from scanweave.core.errors import ConfigError, DataError
from scanweave.core.sampler import EpochOrder, EvaluationOrder, evaluation_loader, train_loader


class Noisy:
    """Each item is its index and one draw from each global generator."""

    def __len__(self) -> int:
        return 23

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor([index, random.random(), np.random.rand(), torch.rand(()).item()])  # noqa: NPY002


@pytest.fixture
def as_rank(monkeypatch):
    """Return a function that makes the samplers believe they run in process `rank` of `world`."""

    def become(rank: int, world: int) -> None:
        monkeypatch.setattr(sampler, "_world", lambda: (rank, world))

    return become


def batches_of(order, become, world: int) -> list[list[list[int]]]:
    result = []
    for rank in range(world):
        become(rank, world)
        result.append([list(b) for b in order])
    return result


def test_order_depends_on_seed_and_epoch_alone():
    def epoch(seed: int, number: int) -> list[list[int]]:
        order = EpochOrder(20, 4, seed=seed)
        torch.rand(3)  # the global generator must not matter
        order.set_epoch(number)
        return [list(b) for b in order]

    assert epoch(1, 3) == epoch(1, 3)
    assert epoch(1, 3) != epoch(1, 4)
    assert epoch(1, 3) != epoch(2, 3)
    assert sorted(chain(*epoch(1, 3))) == list(range(20))


@pytest.mark.parametrize("world", [2, 3])
def test_global_batch_is_union_of_equal_shares(as_rank, world):
    order = EpochOrder(31, 6, seed=5)
    (whole,) = batches_of(order, as_rank, 1)
    parts = batches_of(order, as_rank, world)
    assert len(whole) == 5
    for k, batch in enumerate(whole):
        shares = [parts[rank][k] for rank in range(world)]
        assert list(chain(*shares)) == batch
        assert {len(s) for s in shares} == {6 // world}


def test_incomplete_batch_rule(as_rank):
    as_rank(0, 1)
    assert [len(b) for b in EpochOrder(11, 4)] == [4, 4]
    assert [len(b) for b in EpochOrder(11, 4, drop_last=False)] == [4, 4, 3]
    assert [len(b) for b in EpochOrder(3, 4)] == [3]  # an epoch is never empty
    as_rank(1, 2)
    assert [len(b) for b in EpochOrder(11, 4, drop_last=False)] == [2, 2, 1]
    assert [len(b) for b in EpochOrder(3, 4)] == [1]
    assert [len(b) for b in EpochOrder(9, 4, drop_last=False)] == [2, 2]  # one sample cannot be shared by two
    assert len(EpochOrder(9, 4, drop_last=False)) == 2


def test_refusals_say_what_would_do(as_rank):
    with pytest.raises(DataError, match="0 samples"):
        EpochOrder(0, 4)
    with pytest.raises(ConfigError, match="batch_size is 0"):
        EpochOrder(4, 0)
    with pytest.raises(ConfigError, match="seed is -1"):
        EpochOrder(4, 2, seed=-1)
    as_rank(0, 2)
    with pytest.raises(ConfigError, match="multiple of 2"):
        list(EpochOrder(8, 3))
    with pytest.raises(DataError, match="at least 2"):
        list(EpochOrder(1, 2))
    with pytest.raises(DataError, match="at least 2"):
        list(EvaluationOrder(1, 2))


@pytest.mark.parametrize("size", [4, 7, 8, 9, 16, 33])
@pytest.mark.parametrize("batch_size", [4, 5, 8])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_evaluation_sees_each_sample_once_in_equal_numbers_of_batches(as_rank, size, batch_size, world):
    parts = batches_of(EvaluationOrder(size, batch_size), as_rank, world)
    assert list(chain(*chain(*parts))) == list(range(size))
    assert len({len(p) for p in parts}) == 1
    assert all(b for p in parts for b in p)
    if world == 1:
        assert max(len(b) for b in parts[0]) <= batch_size


def test_resume_skips_what_was_processed_and_wraps_at_the_end():
    whole = [list(b) for b in EpochOrder(20, 4)]
    order = EpochOrder(20, 4)
    order.resume(epoch=0, batch=2)
    order.set_epoch(0)
    assert [list(b) for b in order] == whole[2:]
    assert [list(b) for b in order] == whole  # the skip is used once
    order.resume(epoch=0, batch=5)
    assert (order.epoch, order.start) == (1, 0)


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_goes_on_where_it_stopped_with_the_same_augmentation(workers):
    reference = train_loader(Noisy(), 4, seed=3)
    epochs = []
    for epoch in range(2):
        reference.batch_sampler.set_epoch(epoch)
        epochs.append(list(reference))

    stopped = train_loader(Noisy(), 4, seed=3, num_workers=workers)
    stopped.batch_sampler.set_epoch(1)
    torch.manual_seed(99)
    before = torch.get_rng_state()
    iterator = iter(stopped)
    seen = [next(iterator) for _ in range(2)]
    assert stopped.state_dict() == {"epoch": 1, "batch": 2}
    assert torch.equal(torch.get_rng_state(), before)  # loading draws nothing from the global generator

    resumed = train_loader(Noisy(), 4, seed=3, num_workers=workers)
    resumed.load_state_dict(stopped.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(seen + list(resumed), epochs[1], strict=True))


def test_loader_started_before_its_epoch_is_known_still_uses_it():
    loader = train_loader(Noisy(), 4, num_workers=1)
    iterator = iter(loader)  # Lightning does so when it sets a resumed run up
    loader.batch_sampler.set_epoch(4)
    expected = EpochOrder(23, 4)
    expected.set_epoch(4)
    assert next(iterator)[:, 0].tolist() == next(iter(expected))


def test_evaluation_loader_leaves_the_global_generator_alone():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    values = torch.cat(list(evaluation_loader(torch.arange(10), 4)))
    assert values.tolist() == list(range(10))
    assert torch.equal(torch.get_rng_state(), before)
