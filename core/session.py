"""One run of one verb: options parsed, objects made, trainer driven, results written."""

from __future__ import annotations

import inspect
import logging
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch.distributed as dist
from jsonargparse import set_parsing_settings
from lightning.pytorch.callbacks import Callback, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.plugins.io import CheckpointIO
from lightning.pytorch.utilities.model_helpers import is_overridden

from .checkpoint import export
from .cli import UsageError
from .errors import ConfigError
from .guard import check_arguments, find_config
from .parsing import parse
from .plots import training_curve
from .resume import ResumeState, RunCheckpoint, Stopped
from .run import RunFolder, progress_bar
from .spec import Session, TaskSpec
from .storage import CheckpointStore, atomic_file, read_checkpoint, require_same_layout

# Lightning turns this on; a configuration is never fetched from the network here.
set_parsing_settings(config_read_mode_fsspec_enabled=False)

_UNNEEDED_ADVICE = (
    "custom batch sampler `EvaluationOrder`",  # it returns all indices
    "does not have many workers",  # the user's choice
    "smaller than the logging interval",  # losses are logged per epoch
    "`isinstance.treespec, LeafSpec.` is deprecated",  # inside Lightning
    "returned `None`, this fit will run with no optimizer",  # a rule has nothing to train
    "was deprecated in v4",  # jsonargparse, inside Lightning
)
_ADVERTISEMENTS = ("litlogger", "litmodels", "TPU available")
_NOT_KEPT = ("config", "out", "ckpt_path")


def _is_wanted(record: logging.LogRecord) -> bool:
    return not any(text in record.getMessage() for text in _ADVERTISEMENTS)


logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_wanted)


def run_verb(spec: TaskSpec, verb: str, options: Sequence[str]) -> int:
    """Run a task's verb and return the exit code.

    Args:
        spec: The task.
        verb: One of the standard verbs or of ``spec.verbs``.
        options: What follows the verb.

    Returns:
        0, or 128 + n where signal n stopped a training run.

    Raises:
        UsageError: The options cannot be understood.
        ConfigError: A setting or a file is wrong.
    """
    extra = spec.verbs.get(verb)
    if extra is not None and not extra.configured:
        return run_function(extra.function, options, f"{spec.name} {verb}")
    with warnings.catch_warnings():
        for text in _UNNEEDED_ADVICE:
            warnings.filterwarnings("ignore", message=f".*{text}.*")
        cli = TaskCLI(spec, verb, options)
        try:
            if extra is not None:
                names = inspect.signature(extra.function).parameters
                extra.function(cli.session, **{k: cli.config_init[k] for k in list(names)[1:]})
            else:
                _VERBS[verb](cli.session)
        except Stopped as stop:
            if cli.trainer.is_global_zero:
                print(
                    f"stopped by {stop.signal_name}; {stop.checkpoint} is written. Go on with: scanweave {spec.name} "
                    f"fit --out {cli.run.path} --ckpt_path last",
                    file=sys.stderr,
                )
            return int(stop.code or 1)
    return 0


def run_function(function: Callable[..., Any], options: Sequence[str], name: str) -> int:
    """Call a function with options read from its signature.

    Args:
        function: The function.
        options: Command-line options.
        name: What stands after ``scanweave``, for the messages.

    Returns:
        The function's result where it is an exit code, else 0.

    Raises:
        UsageError: The options cannot be understood.
    """
    parser = LightningArgumentParser(prog=f"scanweave {name}", description="", exit_on_error=False, allow_abbrev=False)
    added = parser.add_function_arguments(function, fail_untyped=False)
    check_arguments(options)
    values = parse(parser, options)
    result = function(**{key: values[key] for key in added})
    return result if isinstance(result, int) else 0


class TaskCLI(LightningCLI):
    """LightningCLI over one task: our defaults, our run folder, and a configuration checked before it is read.

    Args:
        spec: The task.
        verb: The verb.
        options: What follows the verb.
    """

    def __init__(self, spec: TaskSpec, verb: str, options: Sequence[str]) -> None:
        self.spec = spec
        self.verb = verb
        self.options = _prepare(list(options), spec)
        super().__init__(
            model_class=spec.module_class,
            datamodule_class=spec.data_class,
            save_config_callback=None,
            seed_everything_default=0,
            trainer_defaults={"use_distributed_sampler": False, **spec.trainer_defaults},
            # Abbreviated options would slip past the checks of `_prepare`.
            parser_kwargs={
                "exit_on_error": False,
                "allow_abbrev": False,
                "prog": f"scanweave {spec.name} {verb}",
                "description": spec.help,
            },
            subclass_mode_model=True,
            subclass_mode_data=spec.subclass_mode_data,
            auto_configure_optimizers=False,
            run=False,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        if (model := self.spec.default_model) is not None:
            parser.set_defaults({"model": {"class_path": f"{model.__module__}.{model.__qualname__}"}})
        parser.add_argument("--out", type=str | None, help="Run folder (default: runs/TASK/<time>).")
        parser.add_argument(
            "--ckpt_path", type=str | None, help="'last' or 'best' of the folder --out, or a checkpoint's path."
        )
        parser.add_class_arguments(RunCheckpoint, "checkpoint", skip={"folder"}, instantiate=False)
        extra = self.spec.verbs.get(self.verb)
        if extra is not None:
            first = next(iter(inspect.signature(extra.function).parameters))
            parser.add_function_arguments(extra.function, skip={first}, fail_untyped=False)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.config = parse(parser, self.options)

    def before_instantiate_classes(self) -> None:
        # Made here so that nothing is created on disk for a command line that is wrong.
        self.run = RunFolder.choose(self.spec.name, self.config.out)
        name = self.config.ckpt_path
        if name in ("best", "last") and not self.config.out:
            raise UsageError(f"--ckpt_path {name} needs --out, the folder of the run it belongs to")
        self.ckpt_path = str(self.run.checkpoint(name)) if name else None
        if self.verb == "fit" and not name and (self.run.checkpoints / "last.ckpt").exists():
            raise ConfigError(
                f"{self.run.path} holds a run already; go on with it by --ckpt_path last, or name another --out"
            )

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        config = self.config_init.trainer
        callbacks: list[Callback] = [ResumeState()]
        given = config.callbacks if isinstance(config.callbacks, list) else [config.callbacks]
        if config.enable_checkpointing is not False and not any(isinstance(c, RunCheckpoint) for c in given):
            callbacks.append(RunCheckpoint(self.run.checkpoints, **self.config_init.checkpoint))
        if config.enable_progress_bar is not False and not any(isinstance(c, ProgressBar) for c in given):
            callbacks.append(progress_bar())
        self.trainer_defaults["callbacks"] = callbacks
        plugins = config.plugins if isinstance(config.plugins, list) else [config.plugins] if config.plugins else []
        if not any(isinstance(p, CheckpointIO) for p in plugins):
            kwargs["plugins"] = [*plugins, CheckpointStore()]
        if config.logger is None:
            kwargs["logger"] = self.run.loggers()
        return super().instantiate_trainer(default_root_dir=str(self.run.path), **kwargs)

    def after_instantiate_classes(self) -> None:
        self.session = Session(self.trainer, self.model, self.datamodule, self.run, self.ckpt_path)
        if self.trainer.is_global_zero and (self.verb == "fit" or not self.run.config.exists()):
            kept = self.config.clone()
            for key in _NOT_KEPT:
                kept.pop(key, None)
            with atomic_file(self.run.config, "w") as file:
                file.write(self.parser.dump(kept, skip_none=False, skip_validation=True))
        if self.ckpt_path and self.verb != "fit":
            _restore_before_setup(self.session)


def _prepare(options: list[str], spec: TaskSpec) -> list[str]:
    """Resolve configuration names, add the run's own configuration where a checkpoint is loaded, check everything."""
    resolved: list[str] = []
    named = False
    pending = False
    for option in options:
        if pending or option.startswith(("--config=", "-c=")):
            resolved += ["--config", find_config(option if pending else option.split("=", 1)[1])]
            named, pending = True, False
        elif option in ("--config", "-c"):
            pending = True
        else:
            resolved.append(option)
    if not named and (own := _run_config(options)) is not None:
        resolved = ["--config", str(own), *resolved]
    check_arguments(resolved, spec.trusted)
    return resolved


def _run_config(options: Sequence[str]) -> Path | None:
    """Return the config.yaml of the run that the options' checkpoint belongs to."""
    checkpoint, out = _value_of("--ckpt_path", options), _value_of("--out", options)
    if not checkpoint:
        return None
    folder = Path(out) if checkpoint in ("best", "last") and out else Path(checkpoint).parent.parent
    config = folder / "config.yaml"
    return config if config.is_file() else None


def _value_of(flag: str, options: Sequence[str]) -> str | None:
    for i, option in enumerate(options):
        if option.startswith(flag + "="):
            return option.split("=", 1)[1]
        if option == flag and i + 1 < len(options):
            return options[i + 1]
    return None


def _restore_before_setup(session: Session) -> None:
    """Give model and data what a checkpoint knows about them, so that predicting needs no training file."""
    checkpoint = read_checkpoint(session.ckpt_path or "")
    if context := checkpoint.get("context"):
        session.model.set_context(context)
    if state := checkpoint.get(type(session.data).__qualname__):
        session.data.load_state_dict(state)


def fit(session: Session) -> None:
    """Train, then test the best checkpoint where the data have a test set."""
    session.trainer.fit(session.model, session.data, ckpt_path=session.ckpt_path)
    keeper = session.trainer.checkpoint_callback
    metrics: dict[str, Any] = {}
    best = ""
    if isinstance(keeper, RunCheckpoint):
        best = keeper.best_model_path
        if keeper.best_score == keeper.best_score:
            metrics[keeper.monitor] = keeper.best_score
    if best and is_overridden("test_dataloader", session.data, pl.LightningDataModule):
        metrics.update(session.trainer.test(session.model, session.data, ckpt_path=best, verbose=False)[0])
    _report(session, metrics)


def validate(session: Session) -> None:
    """Measure a checkpoint on the validation set."""
    _report(session, session.trainer.validate(session.model, session.data, session.ckpt_path, verbose=False)[0])


def test(session: Session) -> None:
    """Measure a checkpoint on the test set."""
    _report(session, session.trainer.test(session.model, session.data, session.ckpt_path, verbose=False)[0])


def predict(session: Session) -> None:
    """Write a checkpoint's predictions."""
    outputs = predicted(session, session.data)
    if session.trainer.is_global_zero:
        path = session.model.save_predictions(outputs, session.run.path)
        if path is None:
            raise ConfigError(f"{type(session.model).__name__} does not write predictions")
        print(f"predictions: {path}")


def predicted(session: Session, data: Any) -> list[Any]:
    """Return what a checkpoint's ``predict_step`` gives for each batch, of all processes in the dataset's order.

    Args:
        session: The configured run.
        data: A data module or a loader.
    """
    outputs = session.trainer.predict(session.model, data, ckpt_path=session.ckpt_path) or []
    if session.trainer.world_size == 1:
        return outputs
    parts: list[Any] = [None] * session.trainer.world_size
    dist.all_gather_object(parts, outputs)
    return [output for part in parts for output in part]


def export_weights(session: Session) -> None:
    """Write a checkpoint's weights as safetensors and JSON."""
    load_weights(session)
    print(f"exported: {export(session.model, session.run.path / 'export')}")


def load_weights(session: Session) -> None:
    """Build the model and give it a checkpoint's weights, without a trainer.

    Raises:
        UsageError: No checkpoint was named.
    """
    if session.ckpt_path is None:
        raise UsageError("export needs --ckpt_path: best or last with --out, or a checkpoint's path")
    session.model.build()
    weights = read_checkpoint(session.ckpt_path)["state_dict"]
    require_same_layout(weights, session.model.state_dict(), session.ckpt_path)
    session.model.load_state_dict(weights)


def _report(session: Session, metrics: Mapping[str, Any]) -> None:
    """Print the metrics, write them, draw the figures."""
    if not session.trainer.is_global_zero:
        return
    for key, value in sorted(metrics.items()):
        print(f"{key:<24} {float(value):.6g}")
    session.run.write_metrics(metrics)
    session.run.figures.mkdir(parents=True, exist_ok=True)
    drawn = session.model.draw(session.run.figures)
    history = session.run.history()
    losses: dict[str, Mapping[int, float]] = {key: history[key] for key in ("train/loss", "val/loss") if key in history}
    if losses:
        drawn.append(training_curve(losses, session.run.figures / "training.png"))
    print(f"run folder: {session.run.path}")


_VERBS: dict[str, Callable[[Session], None]] = {
    "fit": fit,
    "validate": validate,
    "test": test,
    "predict": predict,
    "export": export_weights,
}
