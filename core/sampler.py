"""Which samples make which batch: an order that depends on the seed and the epoch alone.

A run that is stopped and resumed, split over processes, or given more loader workers sees the same global batches.
"""

from __future__ import annotations

import math
import os
import random
from collections.abc import Iterator, Sized
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, Dataset, Sampler

from .errors import ConfigError, DataError


class _SizedDataset(Protocol):
    """A map-style dataset: a length and an item per index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


def mix_seed(*parts: int) -> int:
    """Return one 63-bit seed made of several non-negative integers (seed, epoch, batch, ...)."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _world() -> tuple[int, int]:
    """Return (rank, number of processes); read late, as Lightning starts the process group after loaders exist."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


class _Batch(list[int]):
    """A batch's indices and the seed of its random augmentation; a list, so that any collate code takes it."""

    def __init__(self, indices: list[int], seed: int) -> None:
        super().__init__(indices)
        self.seed = seed


class EpochOrder(Sampler[list[int]]):
    """Batches for training: epoch e visits ``permutation(seed, e)`` in slices of the global batch size.

    Under several processes each takes an equal share of every global batch, so the mean of the processes' mean
    losses is the global batch's mean loss, and k processes train as one does with the same ``batch_size``.

    The last incomplete batch is left out (shuffled epochs leave out different samples), as unequal shares would
    weight samples unequally. With ``drop_last=False``, or where the whole epoch is shorter than one batch, it is kept
    and cut to a multiple of the number of processes; in one process nothing is cut.

    Args:
        size: Number of samples.
        batch_size: Samples per optimiser step over all processes.
        seed: With the epoch, the only thing the order depends on.
        shuffle: False visits the samples in their own order.
        drop_last: Whether the last incomplete batch is left out.

    Raises:
        DataError: ``size`` is smaller than the number of processes, or zero.
        ConfigError: ``batch_size`` is not a positive multiple of the number of processes.
    """

    def __init__(self, size: int, batch_size: int, seed: int = 0, shuffle: bool = True, drop_last: bool = True) -> None:
        if size < 1:
            raise DataError("the training set has 0 samples; at least 1 is needed")
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}; it must be at least 1")
        if seed < 0:
            raise ConfigError(f"seed is {seed}; it must not be negative")
        self.size = size
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.epoch = 0
        self.start = 0

    @property
    def sampler(self) -> EpochOrder:
        """Itself: Lightning looks for ``set_epoch`` on a batch sampler's ``sampler``."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; another epoch than the present one starts at its first batch."""
        if epoch != self.epoch:
            self.epoch, self.start = epoch, 0

    def resume(self, epoch: int, batch: int) -> None:
        """Go to a place in the run: ``batch`` batches of ``epoch`` have been processed.

        Args:
            epoch: Zero-based epoch.
            batch: Batches processed in it; where that is all of them, the next epoch's start is meant.
        """
        finished = batch >= len(self)
        self.epoch, self.start = (epoch + 1, 0) if finished else (epoch, batch)

    def permutation(self) -> list[int]:
        """Return the present epoch's order of all samples."""
        if not self.shuffle:
            return list(range(self.size))
        generator = torch.Generator().manual_seed(mix_seed(self.seed, self.epoch))
        return torch.randperm(self.size, generator=generator).tolist()

    def __len__(self) -> int:
        """Batches in a whole epoch (also when the next iteration starts in its middle)."""
        full = self.size // self.batch_size
        rest = self.size % self.batch_size
        keep = rest > 0 and (not self.drop_last or full == 0) and rest >= _world()[1]
        return full + int(keep)

    def __iter__(self) -> Iterator[list[int]]:
        rank, world = _world()
        if self.batch_size % world:
            raise ConfigError(
                f"batch_size is {self.batch_size}, which {world} processes cannot share equally; "
                f"choose a multiple of {world}"
            )
        if len(self) == 0:
            raise DataError(f"the training set has {self.size} samples; {world} processes need at least {world}")
        order = self.permutation()
        first, self.start = self.start, 0
        for batch in range(first, len(self)):
            chunk = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            share = len(chunk) // world
            yield _Batch(chunk[rank * share : (rank + 1) * share], mix_seed(self.seed, self.epoch, batch, rank))


class EvaluationOrder(Sampler[list[int]]):
    """Batches for evaluation: every sample exactly once over all processes, none repeated as padding.

    Process r of W takes the r-th of W contiguous parts, whose sizes differ by at most one, and all processes make
    the same number of batches, so that no collective waits for a batch that never comes. Joining the processes'
    results in rank order gives the dataset's order.

    Args:
        size: Number of samples.
        batch_size: Most samples per step over all processes; one process may hold one more than its share of it
            where the parts do not divide.

    Raises:
        DataError: There are fewer samples than processes.
        ConfigError: ``batch_size`` is smaller than the number of processes.
    """

    def __init__(self, size: int, batch_size: int) -> None:
        if size < 1:
            raise DataError("the evaluation set has 0 samples; at least 1 is needed")
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}; it must be at least 1")
        self.size = size
        self.batch_size = batch_size

    def __len__(self) -> int:
        world = _world()[1]
        return max(1, min(math.ceil(self.size / self.batch_size), self.size // world))

    def __iter__(self) -> Iterator[list[int]]:
        rank, world = _world()
        if self.size < world:
            raise DataError(f"the evaluation set has {self.size} samples; {world} processes need at least {world}")
        if self.batch_size < world:
            raise ConfigError(f"batch_size is {self.batch_size}; {world} processes need at least {world}")
        part = range(rank * self.size // world, (rank + 1) * self.size // world)
        count = len(self)
        for batch in range(count):
            yield list(part[batch * len(part) // count : (batch + 1) * len(part) // count])


@contextmanager
def _random_state(seed: int) -> Iterator[None]:
    """Run a block under a seed of its own, leaving Python's, NumPy's and PyTorch's CPU generators as they were."""
    generator = torch.default_generator
    saved = random.getstate(), np.random.get_state(), generator.get_state()  # noqa: NPY002
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  augmentation code draws from the global generator
    generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(saved[0])
        np.random.set_state(saved[1])  # noqa: NPY002
        generator.set_state(saved[2])


class _SeededDataset(Dataset[Any]):
    """Draws each batch's random augmentation from the batch's own seed, in whichever process it is loaded."""

    def __init__(self, dataset: _SizedDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        return self.dataset[index]

    def __getitems__(self, batch: _Batch) -> list[Any]:
        with _random_state(batch.seed):
            if hasattr(self.dataset, "__getitems__"):
                return self.dataset.__getitems__(list(batch))
            return [self.dataset[index] for index in batch]


class TrainLoader(DataLoader[Any]):
    """A loader over an :class:`EpochOrder` that can go on in the middle of an epoch.

    Random augmentation inside the dataset depends on (seed, epoch, batch, rank) alone: neither the number of workers
    nor a resume changes it.

    Args:
        dataset: Map-style dataset.
        order: The order of its samples.
        options: Further ``DataLoader`` arguments (``num_workers``, ``collate_fn``, ``pin_memory``, ...).
    """

    batch_sampler: EpochOrder

    def __init__(self, dataset: _SizedDataset, order: EpochOrder, **options: Any) -> None:
        # A generator of its own: starting the loader must not draw from the global one, which a resume restores.
        generator = torch.Generator().manual_seed(order.seed)
        super().__init__(_SeededDataset(dataset), batch_sampler=order, generator=generator, **options)
        self._position = (0, 0)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # A generator starts at the first `next`: workers must not prefetch before the epoch has been set.
        order = self.batch_sampler
        epoch, done = order.epoch, order.start
        for batch in super().__iter__():
            done += 1
            self._position = (epoch, done)
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Return the place in the run: the epoch and how many of its batches were handed out."""
        return {"epoch": self._position[0], "batch": self._position[1]}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from a place returned by :meth:`state_dict`."""
        self.batch_sampler.resume(state["epoch"], state["batch"])
        self._position = (self.batch_sampler.epoch, self.batch_sampler.start)


def train_loader(
    dataset: _SizedDataset,
    batch_size: int,
    *,
    seed: int | None = None,
    shuffle: bool = True,
    drop_last: bool = True,
    **options: Any,
) -> TrainLoader:
    """Return the training loader of a dataset: shuffled by (seed, epoch), shared among processes, resumable.

    Args:
        dataset: Map-style dataset.
        batch_size: Samples per optimiser step over all processes.
        seed: Seed of the order and of the dataset's random augmentation; by default the one given to Lightning's
            ``seed_everything``, or 0 without it.
        shuffle: Whether to shuffle.
        drop_last: Whether the last incomplete batch is left out; see :class:`EpochOrder`.
        options: Further ``DataLoader`` arguments (``num_workers``, ``collate_fn``, ``pin_memory``, ...).

    Returns:
        The loader, to be returned by ``LightningDataModule.train_dataloader``.
    """
    if seed is None:
        seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
    order = EpochOrder(len(dataset), batch_size, seed=seed, shuffle=shuffle, drop_last=drop_last)
    return TrainLoader(dataset, order, **options)


def evaluation_loader(dataset: Dataset[Any] | Sized, batch_size: int, **options: Any) -> DataLoader[Any]:
    """Return a loader for validation, test or prediction: each sample once, in order, shared among processes.

    Args:
        dataset: Map-style dataset.
        batch_size: Samples per step over all processes.
        options: Further ``DataLoader`` arguments.

    Returns:
        The loader; its metrics must have sum states (every torchmetrics metric has).
    """
    order = EvaluationOrder(len(dataset), batch_size)  # type: ignore[arg-type]
    # The generator of its own keeps validation from moving the global random state.
    generator = torch.Generator().manual_seed(0)
    return DataLoader(dataset, batch_sampler=order, generator=generator, **options)  # type: ignore[arg-type]
