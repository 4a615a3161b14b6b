"""Writing and reading the training checkpoints of a DeepSpeed engine."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from nar_scale.checkpoint import (
    CONFIG_FILE,
    EMA,
    CheckpointStore,
    Partition,
    PartitionReader,
    TrainingState,
    list_files,
    partition_file,
    record_files,
    run_probe,
    save_probe,
    write_partitions,
)
from nar_scale.config import Config, dump_config
from nar_scale.errors import CheckpointError
from nar_scale.files import remedy_for
from nar_scale.training.distributed import World
from nar_scale.training.engine.build import gathered
from nar_scale.training.engine.zero_layout import loss_scale_of, partitions_of, restore, restore_loss_scale
from nar_scale.training.fault_tolerance.error_translation import PeerLostError

Memory = dict[tuple[str, str], Tensor]
"""By kind and name of the parameter."""


@dataclass(frozen=True)
class Snapshot:
    """What a rank writes into a checkpoint."""

    state: TrainingState
    config: str
    probe: dict[str, Tensor]
    partitions: Callable[[], Iterable[Partition]]


def take_snapshot(engine: Any, state: TrainingState, config: Config, memory: Memory | None) -> Snapshot:
    """What this rank's engine holds after a step.

    Args:
        memory: of the host, to copy it into, so that the next step does not change it; taken when it is first needed,
            and free to be used again when the snapshot has been written. None for no copy.
    """
    with gathered(engine.module):
        probe = run_probe(engine.module)
    state = replace(state, loss_scale=loss_scale_of(engine))
    if memory is None:
        return Snapshot(state, dump_config(config), probe, lambda: partitions_of(engine))
    copies = [
        replace(part, tensors={kind: _copy(value, (kind, part.name), memory) for kind, value in part.tensors.items()})
        for part in partitions_of(engine)
    ]
    return Snapshot(state, dump_config(config), probe, lambda: copies)


def _copy(value: Tensor, key: tuple[str, str], memory: Memory) -> Tensor:
    if key not in memory:  # fresh pages cost more than the copy does, as do pages that are not pinned
        memory[key] = torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda)
    return memory[key].copy_(value)


def write_checkpoint(store: CheckpointStore, snapshot: Snapshot, world: World) -> None:
    """Write a checkpoint on all ranks, verify and publish it.

    Raises:
        CheckpointError: on every rank alike, when any of them cannot write.
    """
    step = snapshot.state.step
    writing = Path(_together(world, store.directory, lambda: str(store.prepare(step)) if world.is_main else None)[0])

    def write() -> dict[str, Any]:
        names = [partition_file(world.rank)]
        write_partitions(writing / names[0], snapshot.partitions)
        if world.is_main:
            snapshot.state.save(writing)
            save_probe(writing, snapshot.probe)
            (writing / CONFIG_FILE).write_text(snapshot.config)
            names += [name for name in list_files(writing) if not name.startswith(f"{Path(names[0]).parent}/")]
        return dict(record_files(writing, names))

    records: dict[str, Any] = {}
    try:
        for part in _together(world, store.directory, write):
            records.update(part)
        _together(world, store.directory, lambda: store.publish(writing, step, records) if world.is_main else None)
    except CheckpointError:
        if world.is_main:  # half of a checkpoint would keep a full disk full
            shutil.rmtree(writing, ignore_errors=True)
        raise


def load_checkpoint(store: CheckpointStore, step: int, engine: Any, config: Config) -> TrainingState:
    """Restore engine and position from the checkpoint of a step, which any number of ranks and any ZeRO stage wrote.

    The optimizer keeps the settings it was built with; only its state comes from the checkpoint.

    Raises:
        CheckpointError: it holds another model, or cannot be read.
    """
    path = store.path(step)
    state = TrainingState.load(path)
    with PartitionReader(path) as reader:
        restore(engine, reader, ignored=() if config.training.ema_decay else (EMA,))
    restore_loss_scale(engine, state.loss_scale)
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
        probe.unlink(missing_ok=True)  # processes of other nodes can have the same number
    except OSError as error:
        raise CheckpointError(
            f"cannot write checkpoints to {store.directory}: {error.strerror}; "
            f"{remedy_for(error) or 'change that'}, or set another training.run_directory"
        ) from None


def _together(world: World, directory: Path, action: Callable[[], Any]) -> list[Any]:
    """Do something on every rank; all results by rank, or on every rank the first problem that any of them had.

    What is not a matter of files is raised on the rank that has it alone; the others wait for it to tell that and end,
    which they know by the connection that is lost.
    """
    result, problem, surprise = None, None, None
    try:
        result = action()
    except (CheckpointError, OSError, SafetensorError) as error:
        problem = _in_words(error, directory)
    except Exception as error:
        surprise = error
    outcomes = world.gather((result, problem, surprise is not None))
    if surprise is not None:
        raise surprise
    if any(surprised for _, _, surprised in outcomes):
        world.barrier()
        raise PeerLostError("another process failed in writing a checkpoint")
    for _, each, _ in outcomes:
        if each is not None:
            raise CheckpointError(each)
    return [each for each, _, _ in outcomes]


def _in_words(error: Exception, directory: Path) -> str:
    if isinstance(error, CheckpointError):
        return str(error)
    remedy = remedy_for(error) if isinstance(error, OSError) else None
    advice = f"; {remedy}, or set another training.run_directory" if remedy else ""
    return f"cannot write a checkpoint to {directory}: {str(error) or repr(error)}{advice}"
