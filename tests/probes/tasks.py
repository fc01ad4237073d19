"""Small languages that tell what a recurrence can keep track of: words of a group, sums, recall of pairs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations

import torch
from torch import Tensor

#: Target of a step that is not asked for.
IGNORED = -100


@dataclass(frozen=True)
class Task:
    """A language: what each token of a sequence asks for.

    Args:
        name: What the table calls it.
        tokens: How many different tokens there are.
        classes: How many different targets there are.
        draw: Returns tokens and targets, both (batch, length) int64, from (batch, length, generator).
    """

    name: str
    tokens: int
    classes: int
    draw: Callable[[int, int, torch.Generator], tuple[Tensor, Tensor]]


def word_problem(name: str, products: Tensor) -> Task:
    """Return the task to tell, after each token, the product of all tokens so far, each an element of a finite group.

    Args:
        name: The task's name.
        products: (n, n) int64: entry (i, j) is the number of the element "i, then j"; element 0 is the neutral one.
    """

    def draw(batch: int, length: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        tokens = torch.randint(len(products), (batch, length), generator=generator)
        seen, targets = torch.zeros(batch, dtype=torch.int64), []
        for token in tokens.unbind(1):
            seen = products[seen, token]
            targets.append(seen)
        return tokens, torch.stack(targets, 1)

    return Task(name, len(products), len(products), draw)


def counting(modulus: int) -> Task:
    """Return the task to add up tokens modulo a number; modulo 2 it is parity."""
    number = torch.arange(modulus)
    name = "parity" if modulus == 2 else f"sum modulo {modulus}"
    return word_problem(name, (number[:, None] + number) % modulus)


def symmetric(things: int) -> Task:
    """Return the word problem of all permutations of so many things."""
    elements = torch.tensor(list(permutations(range(things))))
    composed = (
        elements[None, :, :].expand(len(elements), -1, -1).gather(2, elements[:, None, :].expand(-1, len(elements), -1))
    )
    digits = things ** torch.arange(things)
    order = (elements * digits).sum(-1)
    rank, index = order.sort()
    return word_problem(f"S{things}", index[torch.searchsorted(rank, (composed * digits).sum(-1))])


def arithmetic(modulus: int) -> Task:
    """Return the task to evaluate ``3 * 2 + 4 - ...`` modulo a number, products before sums, at each number read.

    Tokens are the numbers, then plus, minus and times; numbers stand at the even places.
    """
    plus, minus, times = modulus, modulus + 1, modulus + 2

    def draw(batch: int, length: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        tokens = torch.randint(modulus, (batch, length), generator=generator)
        tokens[:, 1::2] = torch.randint(plus, times + 1, (batch, length // 2), generator=generator)
        targets = torch.full_like(tokens, IGNORED)
        total, term = torch.zeros(batch, dtype=torch.int64), tokens[:, 0]
        targets[:, 0] = term
        for t in range(2, length, 2):
            operator, number = tokens[:, t - 1], tokens[:, t]
            multiplied = operator == times
            total = torch.where(multiplied, total, total + term)
            term = torch.where(multiplied, term * number, torch.where(operator == minus, -number, number)) % modulus
            targets[:, t] = (total + term) % modulus
        return tokens, targets

    return Task(f"arithmetic modulo {modulus}", modulus + 3, modulus, draw)


def recall(keys: int, values: int) -> Task:
    """Return multi-query associative recall: pairs of key and value, then the keys in another order.

    A third of a sequence's steps are queries; at each the key's value is asked for.

    Source:
        Arora et al., Zoology: measuring and improving recall in efficient language models (2023), section 4.
    """

    def draw(batch: int, length: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        pairs = length // 3
        if not 1 <= pairs <= keys:
            raise ValueError(f"recall: a length of {length} makes {pairs} pairs, expected 1 to {keys}: one a key")
        key = torch.rand(batch, keys, generator=generator).argsort(1)[:, :pairs]
        value = torch.randint(values, (batch, pairs), generator=generator)
        asked = torch.rand(batch, pairs, generator=generator).argsort(1)
        tokens = torch.cat([torch.stack([key, keys + value], 2).flatten(1), key.gather(1, asked)], 1)
        targets = torch.full_like(tokens, IGNORED)
        targets[:, 2 * pairs :] = value.gather(1, asked)
        return tokens, targets

    return Task("recall", keys + values, values, draw)
