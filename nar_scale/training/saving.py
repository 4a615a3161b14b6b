"""Writing and reading the training checkpoints of a DeepSpeed engine."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from nar_scale.checkpoint import (
    CONFIG_FILE,
    CheckpointStore,
    TrainingState,
    list_files,
    record_files,
    run_probe,
    save_probe,
)
from nar_scale.config import Config, dump_config
from nar_scale.errors import CheckpointError, UserError
from nar_scale.training.distributed import World
from nar_scale.training.engine import gathered, gradient_norm
from nar_scale.training.trainer import Trainer

_SETTINGS = ("betas", "eps", "weight_decay")


class Saver:
    """Writes a checkpoint every `checkpoint.every` steps, and where the run ends or stops.

    Args:
        store: where to.
        saved_step: of the last checkpoint.
    """

    def __init__(self, store: CheckpointStore, saved_step: int):
        self.store, self.saved_step = store, saved_step

    def after_step(self, trainer: Trainer) -> None:
        """Save if it is due."""
        if trainer.due(trainer.config.checkpoint.every):
            self._save(trainer)

    def at_end(self, trainer: Trainer) -> None:
        """Save the last step unless that is done."""
        if self.saved_step != trainer.state.step:
            self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        """Write a checkpoint, unless the last step has spoilt the weights (fp16 skips such a step)."""
        trainer.phase.enter("saving a checkpoint")
        norm, step = gradient_norm(trainer.engine), trainer.state.step
        if norm is not None and not math.isfinite(norm) and trainer.config.training.precision != "fp16":
            raise UserError(
                f"the gradient norm is {norm} at step {step}, which is not saved; lower optimizer.learning_rate and "
                f"run again, to go on from the last checkpoint in {self.store.directory}"
            )
        save_checkpoint(self.store, trainer.engine, trainer.state, trainer.world, trainer.config)
        self.saved_step = step


def save_checkpoint(store: CheckpointStore, engine: Any, state: TrainingState, world: World, config: Config) -> None:
    """Write a checkpoint on all ranks, verify and publish it, then delete old ones.

    Raises:
        CheckpointError: on every rank alike, when any of them cannot write.
    """
    writing = Path(_together(world, lambda: str(store.prepare(state.step)) if world.is_main else None)[0])
    with gathered(engine.module):
        probe = run_probe(engine.module)

    def write() -> None:
        engine.save_checkpoint(str(store.directory), tag=writing.name, save_latest=False)
        if world.is_main:
            state.save(writing)
            save_probe(writing, probe)
            (writing / CONFIG_FILE).write_text(dump_config(config))

    _together(world, write)
    names = world.broadcast(list_files(writing) if world.is_main else None)
    records: dict[str, Any] = {}
    for part in _together(world, lambda: record_files(writing, names[world.rank :: world.size])):
        records.update(part)

    def publish() -> None:
        if world.is_main:
            store.publish(writing, state.step, records)
            store.retain(config.checkpoint.keep_last, config.checkpoint.keep_every)

    _together(world, publish)


def load_checkpoint(store: CheckpointStore, step: int, engine: Any, world: World) -> TrainingState:
    """Restore engine and position from the checkpoint of a step.

    The optimizer keeps the settings it was built with; only its moments come from the checkpoint.

    Raises:
        CheckpointError: it was written by another number of ranks or another ZeRO stage.
    """
    path = store.path(step)
    state = TrainingState.load(path)
    here = (world.size, engine.zero_optimization_stage())
    if (state.world_size, state.zero_stage) != here:
        raise CheckpointError(
            f"{path} was written by {state.world_size} rank(s) with ZeRO {state.zero_stage}; this run has {here[0]} "
            f"rank(s) with ZeRO {here[1]}; start as many, or start anew in another training.run_directory"
        )
    settings = [{name: group[name] for name in _SETTINGS} for group in engine.optimizer.param_groups]
    engine.load_checkpoint(str(store.directory), tag=path.name, load_lr_scheduler_states=False)
    for group, configured in zip(engine.optimizer.param_groups, settings):
        group.update(configured)
    return state


def check_writable(store: CheckpointStore) -> None:
    """Fail now rather than after the first thousand steps.

    Raises:
        CheckpointError: checkpoints cannot be written there.
    """
    try:
        store.directory.mkdir(parents=True, exist_ok=True)
        probe = store.directory / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise CheckpointError(
            f"no permission to write checkpoints to {store.directory} ({error.strerror}); change its permissions or "
            "set training.run_directory"
        ) from None


def _together(world: World, action: Callable[[], Any]) -> list[Any]:
    """Do something on every rank; all results by rank, or on every rank the first problem that any of them had."""
    result, problem = None, None
    try:
        result = action()
    except (CheckpointError, OSError, RuntimeError, SafetensorError) as error:
        problem = str(error) if isinstance(error, CheckpointError) else f"cannot write the checkpoint: {error}"
    outcomes = world.gather((result, problem))
    for _, each in outcomes:
        if each is not None:
            raise CheckpointError(each)
    return [each for each, _ in outcomes]
