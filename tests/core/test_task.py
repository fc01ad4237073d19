"""The training base: optimiser groups, schedules, hyper-parameters, moving average, metrics."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from scanweave.core.errors import ConfigError
from scanweave.core.metrics import SampleMean
from scanweave.core.optimizers import create_optimizer, create_schedule, parameter_groups
from scanweave.core.resume import random_state, set_random_state
from scanweave.core.task import Task

from .tiny import Mlp, TinyData


class Recurrent(nn.Module):
    """Parameters of every kind that meets weight decay."""

    def __init__(self) -> None:
        super().__init__()
        self.A_log = nn.Parameter(torch.zeros(3, 2))
        self.A_log._no_weight_decay = True  # type: ignore[attr-defined]
        self.D = nn.Parameter(torch.zeros(3))
        self.position = nn.Parameter(torch.zeros(1, 4))
        self.linear = nn.Linear(3, 2)
        self.frozen = nn.Parameter(torch.zeros(2, 2), requires_grad=False)

    def no_weight_decay(self) -> set[str]:
        return {"position"}


def test_each_trainable_parameter_is_in_exactly_one_group():
    module = nn.ModuleDict({"net": Recurrent()})
    decayed, plain = parameter_groups(module, 0.1)
    names = {id(p): name for name, p in module.named_parameters()}
    assert [names[id(p)] for p in decayed["params"]] == ["net.linear.weight"]
    assert {names[id(p)] for p in plain["params"]} == {"net.A_log", "net.D", "net.position", "net.linear.bias"}
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    with pytest.raises(ConfigError, match="no trainable parameters"):
        parameter_groups(nn.ReLU(), 0.1)


def rates(name: str, epochs: int, warmup: int = 0, lr_decay: float = 0.5) -> list[float]:
    optimizer = create_optimizer("adam", [{"params": [nn.Parameter(torch.zeros(1))]}], lr=1.0)
    schedule = create_schedule(name, optimizer, epochs=epochs, warmup_epochs=warmup, lr_decay=lr_decay)
    found = []
    for _ in range(epochs):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_schedules_follow_their_equations():
    assert rates("constant", 3) == [1.0, 1.0, 1.0]
    assert rates("exponential", 4) == pytest.approx([1.0, 0.5, 0.25, 0.125])
    assert rates("cosine", 4) == pytest.approx([1.0, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5])
    assert rates("exponential", 5, warmup=2) == pytest.approx([1 / 3, 2 / 3, 1.0, 0.5, 0.25])
    assert rates("cosine", 6, warmup=2) == pytest.approx([1 / 3, 2 / 3, 1.0, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"name": "cosine", "epochs": None}, "max_epochs"),
        ({"name": "cosine", "epochs": 2, "warmup_epochs": 2}, "larger than warmup_epochs"),
        ({"name": "exponential", "lr_decay": 0.0}, "lr_decay"),
        ({"name": "constant", "warmup_epochs": -1}, "warmup_epochs"),
        ({"name": "linear"}, "one of constant"),
    ],
)
def test_schedules_refuse_what_makes_no_sense(options, said):
    optimizer = torch.optim.Adam([nn.Parameter(torch.zeros(1))])
    with pytest.raises(ConfigError, match=said):
        create_schedule(**{"epochs": 3, "warmup_epochs": 0, "lr_decay": 0.5, **options}, optimizer=optimizer)
    with pytest.raises(ConfigError, match="one of adam, adamw"):
        create_optimizer("sgd", [], lr=0.1)  # type: ignore[arg-type]


def test_hyper_parameters_must_be_plain():
    class Pathy(Mlp):
        def __init__(self, folders: object) -> None:
            super().__init__()

    assert Pathy([1, "a", {"b": None}]).hparams["folders"] == [1, "a", {"b": None}]
    with pytest.raises(TypeError, match=r"folders\[0\] is a PosixPath"):
        Pathy([Path("a")])


def test_missing_hooks_are_named():
    with pytest.raises(NotImplementedError, match=r"Task must implement configure_models\(\)"):
        Task().build()
    with pytest.raises(ConfigError, match="takes no context"):
        Task().set_context({"channels": 3})


def test_sample_mean_weighs_batches_and_keeps_nan():
    mean = SampleMean()
    mean.update(torch.tensor(1.0), 3)
    mean.update(torch.tensor(5.0), 1)
    assert mean.compute() == 2.0
    mean.update(torch.tensor(float("nan")), 1)
    assert mean.compute().isnan()


def test_validation_and_checkpoints_use_the_moving_average(tmp_path):
    seen: list[torch.Tensor] = []

    class Watched(Mlp):
        def on_validation_epoch_end(self) -> None:
            seen.append(self.model[0].weight.detach().clone())

        def on_train_batch_end(self, *_: object) -> None:
            seen.clear()

    pl.seed_everything(0, verbose=False)
    task, data = Watched(ema=0.5, dropout=0.0), TinyData(size=8, batch_size=8)
    task.build()
    start = task.model[0].weight.detach().clone()
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=tmp_path, num_sanity_val_steps=0, use_distributed_sampler=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(task, data)
    # One step: the average starts as a copy of the weights after it, and training ends with the average.
    assert torch.equal(seen[0], task.model[0].weight)
    assert not torch.equal(start, task.model[0].weight)
    with pytest.raises(ConfigError, match=r"ema is 1\.5"):
        Mlp(ema=1.5).configure_callbacks()


def test_random_state_comes_back():
    import random

    import numpy as np

    def draw() -> list[float]:
        return [random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(()).item()]  # noqa: NPY002

    random.gauss(0, 1)  # leaves the second of a pair behind
    np.random.randn()  # noqa: NPY002
    state = random_state()
    first = draw()
    set_random_state(state)
    assert draw() == first
