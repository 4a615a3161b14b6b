"""Writing and reading the training checkpoints of a DeepSpeed engine."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nar_scale.checkpoint import CheckpointStore, TrainingState, list_files, record_files, run_probe, save_probe
from nar_scale.config import CheckpointConfig
from nar_scale.errors import CheckpointError
from nar_scale.training.distributed import World
from nar_scale.training.engine import gathered


def save_checkpoint(
    store: CheckpointStore, engine: Any, state: TrainingState, world: World, retention: CheckpointConfig
) -> None:
    """Write a checkpoint on all ranks, verify and publish it, then delete old ones.

    Raises:
        CheckpointError: on every rank alike, when the directory cannot be written.
    """
    writing = Path(_on_main(world, lambda: str(store.prepare(state.step))))
    with gathered(engine.module):
        probe = run_probe(engine.module)
    engine.save_checkpoint(str(store.directory), tag=writing.name, save_latest=False)
    if world.is_main:
        state.save(writing)
        save_probe(writing, probe)
    world.barrier()
    records: dict[str, Any] = {}
    for part in world.gather(record_files(writing, list_files(writing)[world.rank :: world.size])):
        records.update(part)
    _on_main(world, lambda: str(store.publish(writing, state.step, records)))
    _on_main(world, lambda: store.retain(retention.keep_last, retention.keep_every))


def load_checkpoint(store: CheckpointStore, step: int, engine: Any, world: World) -> TrainingState:
    """Restore engine and position from the checkpoint of a step.

    Raises:
        CheckpointError: it was written by another number of ranks or another ZeRO stage.
    """
    path = store.path(step)
    state = TrainingState.load(path)
    here = (world.size, engine.zero_optimization_stage())
    if (state.world_size, state.zero_stage) != here:
        raise CheckpointError(
            f"{path} was written by {state.world_size} rank(s) with ZeRO {state.zero_stage}; this run has {here[0]} "
            f"rank(s) with ZeRO {here[1]}; start as many, or start anew with --resume never"
        )
    engine.load_checkpoint(str(store.directory), tag=path.name, load_lr_scheduler_states=False)
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


def _on_main(world: World, action: Callable[[], Any]) -> Any:
    """Do something on the main process; its result, or its CheckpointError, reaches every rank."""
    result, problem = None, None
    if world.is_main:
        try:
            result = action()
        except CheckpointError as error:
            problem = str(error)
    result, problem = world.broadcast((result, problem))
    if problem is not None:
        raise CheckpointError(problem)
    return result
