"""Trains a small stack of one mixer on a task, at short lengths, and measures it at long ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scanweave.core import Stack, create_mixer

from .tasks import IGNORED, Task

TRAINED = 40
SMOOTHING = 0.1


@dataclass(frozen=True)
class Probe:
    """A task, a mixer, and how the one is trained on the other.

    Args:
        task: What is to be learnt.
        mixer: A registered mixer's name.
        arguments: The mixer's own arguments.
        dim: Features.
        depth: Blocks.
        steps: Steps of the optimiser.
        batch: Sequences in a step.
        rate: Largest learning rate; it rises over a tenth of the steps and falls to 0 by a cosine.
        shortest: Shortest length in training; each step of the optimiser draws one, uniformly.
        longest: Longest length in training, from half of the steps on; up to there the longest one grows.
    """

    task: Task
    mixer: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    dim: int = 32
    depth: int = 1
    steps: int = 1500
    batch: int = 128
    rate: float = 1e-2
    shortest: int = 3
    longest: int = TRAINED

    @property
    def name(self) -> str:
        """Return the mixer as the table names it."""
        options = ", ".join(f"{key}={value}" for key, value in self.arguments.items())
        return f"{self.mixer}({options})"


class Network(nn.Module):
    """Tokens (B, L) to logits (B, L, classes), through a stack."""

    def __init__(self, probe: Probe) -> None:
        super().__init__()
        self.embedding = nn.Embedding(probe.task.tokens, probe.dim)
        mixer = partial(create_mixer, probe.mixer, **probe.arguments)
        self.stack = Stack(probe.dim, probe.depth, mixer)
        self.head = nn.Linear(probe.dim, probe.task.classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits after each token."""
        return self.head(self.stack(self.embedding(tokens))[0])


def train(probe: Probe, seed: int) -> tuple[Network, float]:
    """Return a trained network and its loss over the last tenth of the steps; a function of the seed alone."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Network(probe)
    optimizer = torch.optim.AdamW(network.parameters(), lr=probe.rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, probe.rate, total_steps=probe.steps, pct_start=0.1)
    losses = []
    for step in range(probe.steps):
        longest = min(probe.longest, probe.shortest + (probe.longest - probe.shortest) * 2 * step // probe.steps)
        length = int(torch.randint(probe.shortest, longest + 1, (), generator=generator))
        tokens, targets = probe.task.draw(probe.batch, length, generator)
        # An answer that is certain has no gradient; smoothed targets go on pulling equal states together, without which
        # small differences add up over lengths never trained.
        loss = F.cross_entropy(
            network(tokens).flatten(0, 1), targets.flatten(), ignore_index=IGNORED, label_smoothing=SMOOTHING
        )
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    last = losses[-max(1, probe.steps // 10) :]
    return network, sum(last) / len(last)


@torch.no_grad()
def accuracy(network: Network, task: Task, length: int, *, after: int = 0, sequences: int = 256) -> float:
    """Return the share of right answers in fresh sequences, over the steps from number ``after`` on."""
    tokens, targets = task.draw(sequences, length, torch.Generator().manual_seed(length + 10**6))
    asked = targets[:, after:] != IGNORED
    right = network(tokens)[:, after:].argmax(-1) == targets[:, after:]
    return (right & asked).sum().item() / asked.sum().item()


def extrapolation(network: Network, task: Task, lengths: Sequence[int]) -> list[float]:
    """Return the accuracy at each length; beyond the lengths of training, over the steps never trained."""
    return [accuracy(network, task, length, after=TRAINED if length > TRAINED else 0) for length in lengths]
