"""Writing and reading training checkpoints."""

from __future__ import annotations

import logging
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
from nar_scale.training.engine.zero_engine import ZeroEngine
from nar_scale.training.fault_tolerance.error_translation import PeerLostError

_logger = logging.getLogger(__name__)

HostMemory = dict[tuple[str, str], Tensor]
"""Buffers by kind of state and name of the parameter."""


@dataclass(frozen=True)
class Snapshot:
    """What a rank writes into a checkpoint."""

    state: TrainingState
    config: str
    probe: dict[str, Tensor]
    partitions: Callable[[], Iterable[Partition]]


def take_snapshot(engine: ZeroEngine, state: TrainingState, config: Config, memory: HostMemory | None) -> Snapshot:
    """What this rank's engine holds after a step; a collective.

    Args:
        memory: of the host, to copy it into, so that the next step does not change it; taken when it is first needed,
            and free to be used again when the snapshot has been written. None for no copy.
    """
    with engine.gathered():
        probe = run_probe(engine.module)
    state = replace(state, loss_scale=engine.loss_scale)
    if memory is None:
        return Snapshot(state, dump_config(config), probe, engine.partitions)
    copies = [
        replace(part, tensors={kind: _copy(value, (kind, part.name), memory) for kind, value in part.tensors.items()})
        for part in engine.partitions()
    ]
    return Snapshot(state, dump_config(config), probe, lambda: copies)


def _copy(value: Tensor, key: tuple[str, str], memory: HostMemory) -> Tensor:
    if key not in memory:  # fresh pages cost more than the copy does, as do pages that are not pinned
        memory[key] = torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda)
    return memory[key].copy_(value)


def write_checkpoint(store: CheckpointStore, snapshot: Snapshot, world: World) -> None:
    """Write a checkpoint on all ranks, verify and publish it.

    Raises:
        CheckpointError: on every rank, when any of them cannot write.
    """
    step = snapshot.state.step
    _logger.debug("writing the checkpoint of step %d", step)
    writing = Path(
        _on_all_ranks(world, store.directory, lambda: str(store.prepare(step)) if world.is_main else None)[0]
    )

    def write() -> dict[str, Any]:
        names = [partition_file(world.rank)]
        _logger.debug("writing %s", names[0])
        write_partitions(writing / names[0], snapshot.partitions)
        if world.is_main:
            snapshot.state.save(writing)
            save_probe(writing, snapshot.probe)
            (writing / CONFIG_FILE).write_text(snapshot.config)
            names += [name for name in list_files(writing) if not name.startswith(f"{Path(names[0]).parent}/")]
        return dict(record_files(writing, names))

    records: dict[str, Any] = {}
    try:
        for part in _on_all_ranks(world, store.directory, write):
            records.update(part)
        _on_all_ranks(world, store.directory, lambda: store.publish(writing, step, records) if world.is_main else None)
    except CheckpointError as error:
        _logger.debug("checkpoint of step %d not written: %s", step, error)
        if world.is_main:  # half of a checkpoint would keep a full disk full
            shutil.rmtree(writing, ignore_errors=True)
        raise
    _logger.debug("checkpoint of step %d written", step)


def load_checkpoint(store: CheckpointStore, step: int, engine: ZeroEngine, config: Config) -> TrainingState:
    """Restore engine and position from the checkpoint of a step, which any number of ranks and any ZeRO stage wrote.

    The optimizer keeps the settings it was built with; only its state comes from the checkpoint.

    Raises:
        CheckpointError: it holds another model, or cannot be read.
    """
    path = store.path(step)
    state = TrainingState.load(path)
    with PartitionReader(path) as reader:
        engine.restore(reader, ignored=() if config.training.ema_decay else (EMA,))
    engine.restore_loss_scale(state.loss_scale)
    return state


def check_writable(store: CheckpointStore) -> None:
    """Make sure that checkpoints can be written, before the first thousand steps; creates the directory.

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


def _on_all_ranks(world: World, directory: Path, action: Callable[[], Any]) -> list[Any]:
    """Call a function on every rank; returns all results by rank.

    An error that is not about files is raised on the rank that has it alone; the others wait for it to report that and
    end, which they know by the lost connection.

    Raises:
        CheckpointError: on every rank, the first that any of them had.
        PeerLostError: another rank has failed with an error of another kind.
    """
    result, problem, unexpected = None, None, None
    try:
        result = action()
    except (CheckpointError, OSError, SafetensorError) as error:
        problem = _describe(error, directory)
    except Exception as error:
        unexpected = error
    outcomes = world.gather((result, problem, unexpected is not None))
    if unexpected is not None:
        raise unexpected
    if any(failed for _, _, failed in outcomes):
        world.barrier()
        raise PeerLostError("another process failed in writing a checkpoint")
    for _, each, _ in outcomes:
        if each is not None:
            raise CheckpointError(each)
    return [each for each, _, _ in outcomes]


def _describe(error: Exception, directory: Path) -> str:
    if isinstance(error, CheckpointError):
        return str(error)
    remedy = remedy_for(error) if isinstance(error, OSError) else None
    advice = f"; {remedy}, or set another training.run_directory" if remedy else ""
    return f"cannot write a checkpoint to {directory}: {str(error) or repr(error)}{advice}"
