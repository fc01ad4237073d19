"""Optimisers and learning-rate schedules shared by all tasks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import nn
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, ExponentialLR, LinearLR, LRScheduler, SequentialLR

from .errors import ConfigError

OptimizerName = Literal["adam", "adamw"]
ScheduleName = Literal["constant", "cosine", "exponential"]


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Split a module's trainable parameters into one group with weight decay and one without.

    No decay reaches vectors and scalars (biases, norm gains), parameters marked ``param._no_weight_decay = True``
    (a state-space model's ``A_log`` and ``D``), and names listed by a submodule's ``no_weight_decay()`` (timm's
    convention).

    Args:
        module: The module.
        weight_decay: Decay of the first group.

    Returns:
        Parameter groups for an optimiser; every trainable parameter is in exactly one.

    Raises:
        ConfigError: Nothing is trainable.
    """
    exempt = {
        f"{prefix}.{name}" if prefix else name
        for prefix, child in module.named_modules()
        if callable(getattr(child, "no_weight_decay", None))
        for name in child.no_weight_decay()
    }
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            is_exempt = parameter.ndim <= 1 or getattr(parameter, "_no_weight_decay", False) or name in exempt
            (plain if is_exempt else decayed).append(parameter)
    if not decayed and not plain:
        raise ConfigError("the model has no trainable parameters")
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def create_optimizer(name: OptimizerName, groups: Iterable[dict[str, Any]], lr: float) -> torch.optim.Optimizer:
    """Return Adam (L2 penalty in the gradient) or AdamW (decoupled decay) over parameter groups."""
    kinds: dict[str, type[torch.optim.Optimizer]] = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    if name not in kinds:
        raise ConfigError(f"optimizer is {name!r}; it must be one of {', '.join(kinds)}")
    return kinds[name](groups, lr=lr)  # type: ignore[call-arg]


def create_schedule(
    name: ScheduleName, optimizer: torch.optim.Optimizer, *, epochs: int | None, warmup_epochs: int, lr_decay: float
) -> LRScheduler:
    """Return a schedule stepped once per epoch: a linear warm-up, then constant, cosine to 0, or exponential.

    lr(e) = lr (e + 1) / (w + 1) for e < w; after it, with t = e - w: lr, lr (1 + cos(pi t / (E - w))) / 2,
    or lr lr_decay^t.

    Args:
        name: ``"constant"``, ``"cosine"`` or ``"exponential"``.
        optimizer: The optimiser.
        epochs: E, the run's epochs; needed by the cosine alone.
        warmup_epochs: w.
        lr_decay: Factor per epoch of the exponential.

    Returns:
        The schedule.

    Raises:
        ConfigError: A value is out of range, or the cosine's length is unknown.
    """
    if warmup_epochs < 0:
        raise ConfigError(f"warmup_epochs is {warmup_epochs}; it must not be negative")
    main: LRScheduler
    if name == "constant":
        main = ConstantLR(optimizer, factor=1.0, total_iters=0)
    elif name == "exponential":
        if not 0.0 < lr_decay <= 1.0:
            raise ConfigError(f"lr_decay is {lr_decay}; it must lie in (0, 1]")
        main = ExponentialLR(optimizer, gamma=lr_decay)
    elif name == "cosine":
        if epochs is None or epochs <= warmup_epochs:
            raise ConfigError(
                f"the cosine schedule ends at trainer.max_epochs, which is {epochs}; "
                f"it must be larger than warmup_epochs ({warmup_epochs})"
            )
        main = CosineAnnealingLR(optimizer, T_max=epochs - warmup_epochs)
    else:
        raise ConfigError(f"schedule is {name!r}; it must be one of constant, cosine, exponential")
    if warmup_epochs == 0:
        return main
    warmup = LinearLR(optimizer, start_factor=1.0 / (warmup_epochs + 1), total_iters=warmup_epochs)
    return SequentialLR(optimizer, [warmup, main], milestones=[warmup_epochs])
