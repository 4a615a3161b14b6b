"""How long a run is and how large its batches are: pure functions of the step."""

from __future__ import annotations

from typing import TYPE_CHECKING

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


def samples_before(training: TrainingConfig, step: int) -> int:
    """Sequences in all steps before one: its position in the stream, unless samples have been passed over."""
    stages = _stages(training)
    ends = [*(start for start, _ in stages[1:]), step]
    return sum(size * max(min(end, step) - start, 0) for (start, size), end in zip(stages, ends))


def _stages(training: TrainingConfig) -> list[tuple[int, int]]:
    """First step and batch size of each stage."""
    warmup = [(stage.from_step, stage.global_batch_size) for stage in training.batch_size_warmup]
    return warmup or [(0, training.global_batch_size)]
