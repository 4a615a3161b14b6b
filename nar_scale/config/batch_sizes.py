"""How long a run is, how large its batches are, and how they are cut into micro-batches: functions of the step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nar_scale.errors import ConfigError

if TYPE_CHECKING:
    from nar_scale.config.schema import Config
    from nar_scale.config.sections.training import TrainingConfig


def steps_of_run(config: Config) -> int:
    """The length of a run in optimizer steps, whichever way it is given; one in samples or tokens is rounded up."""
    training = config.training
    if training.steps is not None:
        return training.steps
    return first_step_from(training, training.samples or -(-(training.tokens or 0) // config.model.max_seq_len))


def first_step_from(training: TrainingConfig, samples: int) -> int:
    """The first step (from 0) that begins at or after a position in the stream, if no samples are passed over."""
    starts = [(step, samples_before(training, step)) for step, _ in _stages(training)]
    step, taken = next(start for start in reversed(starts) if start[1] <= samples)
    return step + -(-(samples - taken) // batch_size_at(training, step))


def batch_size_at(training: TrainingConfig, step: int) -> int:
    """Sequences in the global batch of a step (from 0)."""
    return next(size for start, size in reversed(_stages(training)) if start <= step)


def gradient_accumulation_steps(config: Config, world_size: int, step: int | None = None) -> int:
    """Micro-batches that each of `world_size` ranks works through in one optimizer step.

    Args:
        step: which one, where the batch size is warmed up; the last if not given.

    Raises:
        ConfigError: the global batch does not divide evenly; the nearest sizes that do are named.
    """
    training = config.training
    peers = training.sequence_parallel_size
    if world_size % peers:
        raise ConfigError(
            f"training.sequence_parallel_size {peers} does not divide {world_size} rank(s); start a multiple of {peers}"
        )
    size = training.global_batch_size if step is None else batch_size_at(training, step)
    unit = training.micro_batch_size * (world_size // peers)
    if size % unit:
        below = size // unit * unit
        ranks = f"{world_size} rank(s)" if peers == 1 else f"{world_size // peers} group(s) of {peers} ranks"
        nearest = " or ".join(str(size) for size in (below, below + unit) if size)
        name = "global_batch_size" if step is None else f"batch_size_warmup from step {step} on:"
        raise ConfigError(
            f"training.{name} {size} does not divide into micro-batches of "
            f"{training.micro_batch_size} on {ranks}; use {nearest}, or change training.micro_batch_size"
        )
    return size // unit


def samples_before(training: TrainingConfig, step: int) -> int:
    """Sequences in all steps before one: its position in the stream, unless samples have been passed over."""
    stages = _stages(training)
    ends = [*(start for start, _ in stages[1:]), step]
    return sum(size * max(min(end, step) - start, 0) for (start, size), end in zip(stages, ends))


def _stages(training: TrainingConfig) -> list[tuple[int, int]]:
    """First step and batch size of each stage."""
    warmup = [(stage.from_step, stage.global_batch_size) for stage in training.batch_size_warmup]
    return warmup or [(0, training.global_batch_size)]
