"""Where a run starts: at its newest good checkpoint, at one that is named, from other weights, or from nothing."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from nar_scale.checkpoint import (
    CheckpointStore,
    PartitionReader,
    TrainingState,
    verify_integrity,
)
from nar_scale.checkpoint.weights import open_weights
from nar_scale.config import Config, TrainingConfig, batch_size_at, first_step_from, fixed_on_resume
from nar_scale.errors import CheckpointError
from nar_scale.training.distributed import World
from nar_scale.training.engine.zero_engine import ZeroEngine

_logger = logging.getLogger(__name__)


def find_checkpoint(store: CheckpointStore, resume: str, world: World) -> tuple[CheckpointStore, int | None]:
    """The checkpoint to resume from: its store and its step, which is None for a start from nothing.

    All ranks take part, each verifying some of the files. A job that SLURM has put back into its queue goes on from
    the newest good checkpoint of the run, if there is one, whatever its arguments have said the first time.

    Args:
        store: of this run.
        resume: `auto`, `never`, or the path of a checkpoint; where that is another run's, it is where this one starts,
            and is not gone back to.

    Raises:
        CheckpointError: there is none where one is asked for, none is good, or some are there that are not wanted.
    """
    # a shared directory can look different to other nodes for a while
    own_steps, pointer_exists = world.broadcast((store.steps(), store.pointer.exists()))
    if own_steps and int(os.environ.get("SLURM_RESTART_COUNT", 0)):
        resume = "auto"
    if resume == "never":
        if own_steps:
            raise CheckpointError(
                f"{store.directory} holds checkpoints up to step {own_steps[-1]}; --resume never would overwrite "
                "them: remove them or set another training.run_directory"
            )
        return store, None
    if resume == "auto" and pointer_exists and not own_steps:
        raise CheckpointError(
            f"{store.pointer} is there, but no checkpoint: restore them, or remove it to start from nothing"
        )
    path = Path(resume)
    if resume == "auto" or (own_steps and path.parent.resolve() != store.directory.resolve()):
        return store, store.newest_good(
            report=lambda line: _logger.warning(line) if world.is_main else None,
            steps=own_steps,
            inspect=lambda path: _verify(path, world),
        )
    store = CheckpointStore(path.parent)
    steps = {store.path(step): step for step in world.broadcast(store.steps())}
    if path not in steps:
        raise CheckpointError(f"--resume {resume}: no checkpoint there; give RUN/checkpoints/step-NNNNNNNNN")
    problem = _verify(path, world)
    if problem is not None:
        raise CheckpointError(problem)
    return store, steps[path]


def start_from_weights(engine: ZeroEngine, path: Path) -> None:
    """Load into an engine the weights of a consolidated or of a training checkpoint, and nothing else of it.

    Raises:
        CheckpointError: neither is there, or it is damaged or holds another model.
    """
    with open_weights(path) as source:
        engine.restore(source, weights_only=isinstance(source, PartitionReader))


def _verify(path: Path, world: World) -> str | None:
    """What is wrong with a checkpoint, None if nothing; every rank verifies some of the files. A collective."""
    problems = world.gather(verify_integrity(path, (world.rank, world.size)))
    return next((problem for problem in problems if problem is not None), None)


def check_same_stream(
    saved: TrainingState, state: TrainingState, consumed: dict[str, int], training: TrainingConfig, path: Path
) -> None:
    """Refuse to go on with other data than the checkpoint has seen.

    Args:
        saved: of the checkpoint.
        state: of a run that starts now.
        consumed: samples of each source that come before the position of the checkpoint, as this run mixes them.
        training: of this run.
        path: of the checkpoint.
    """
    for name, remedy in (
        ("fingerprint", "the shards in data.directory have changed since"),
        ("vocabulary_size", "the vocabulary has changed since"),
    ):
        before, now = getattr(saved, name), getattr(state, name)
        if before != now:
            raise CheckpointError(
                f"{path} has {name} {before}, this run {now}: {remedy}, or start anew in another training.run_directory"
            )
    if saved.source_samples != consumed:
        later = max(saved.step, first_step_from(training, saved.samples))  # the stream is ahead after a roll back
        raise CheckpointError(
            f"{path} has consumed {_counts(saved.source_samples)}, but this mixture would have consumed "
            f"{_counts(consumed)} by then: set weights and batch sizes back, and change them by a data.curriculum or a "
            f"training.batch_size_warmup from step {later} or later on"
        )


def _counts(consumed: dict[str, int]) -> str:
    return ", ".join(f"{number:,} samples of {name}" for name, number in consumed.items()) or "a single source"


def check_same_model(config: Config, saved: Config, path: Path) -> None:
    """Refuse to go on with settings that give weights and position in the stream another meaning than those saved."""
    settings = fixed_on_resume(config)
    for key, before in fixed_on_resume(saved).items():
        now = settings.get(key)  # another kind may lack the key, but `kind` comes before it
        if before != now:
            raise CheckpointError(
                f"{path} was trained with {key} {before}, not {now}; set it back, or start anew in another "
                "training.run_directory"
            )


def check_same_batch_sizes(config: Config, saved: Config, path: Path, step: int) -> None:
    """Refuse to go on at a step with settings by which the steps before it were of other sizes than those saved."""
    warmup = config.training.batch_size_warmup
    for start in sorted({0, *(stage.from_step for stage in (*saved.training.batch_size_warmup, *warmup))}):
        before, now = batch_size_at(saved.training, start), batch_size_at(config.training, start)
        if start < step and before != now:
            key = "training.batch_size_warmup" if warmup else "training.global_batch_size"
            remedy = (
                f"for other sizes from here on let training.batch_size_warmup have a stage from step {step} or later"
            )
            if config.data.sequential:
                remedy = "data.sequential keeps one size; for another start anew in another training.run_directory"
            raise CheckpointError(
                f"{path} took step {start + 1} with {before} sequences, but by {key} it would have had {now}: set it "
                f"back; {remedy}"
            )
