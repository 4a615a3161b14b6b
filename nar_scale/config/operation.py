"""The sections `checkpoint`, `logging` and `faults`: what a run saves, what it reports, and what it withstands."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from nar_scale.config.section import Section


class CheckpointConfig(Section):
    """When checkpoints are written and which are kept."""

    every: PositiveInt = 1000
    """Steps between checkpoints; one is also written at the end and on a stop signal."""
    keep_last: PositiveInt = 2
    keep_every: PositiveInt | None = None
    """Steps whose multiples are never deleted."""
    asynchronous: bool = False
    """Go on training while a checkpoint is written; takes as much memory of the host as the checkpoint is large."""
    consolidate_every: NonNegativeInt = 0
    """Steps between consolidated checkpoints, made beside the run in its directory `consolidated`; 0 for none."""


class LoggingConfig(Section):
    """What is reported during a run, and how often."""

    every: PositiveInt = 10
    """Steps between lines in the metrics log, TensorBoard and the progress display."""
    evaluate_every: NonNegativeInt = 0
    """Steps between evaluations on held-out data; 0 for none. One more runs at the end of training."""
    evaluation_samples: PositiveInt = 1024
    """Held-out sequences in an evaluation."""
    sample_every: NonNegativeInt = 0
    """Steps between generated samples in TensorBoard; 0 for none."""
    samples: PositiveInt = 2
    """Sequences generated each time."""
    image_shape: Annotated[tuple[PositiveInt, PositiveInt], Field(strict=False)] | None = None
    """Height and width, where tokens are the grey levels of an image, row by row: samples are then drawn."""
    peak_flops: PositiveFloat | None = None
    """What a device can do at best in the run's precision, in FLOP/s, for the MFU; known for some GPUs in bf16."""
    profile_steps: Annotated[tuple[PositiveInt, PositiveInt] | None, Field(strict=False)] = None
    """First and last step to trace with torch's profiler, into RUN/profile."""
    profile_ranks: Annotated[tuple[NonNegativeInt, ...], Field(strict=False)] = (0,)
    """Ranks that are traced."""
    flops_step: PositiveInt | None = None
    """Step whose FLOPs DeepSpeed's profiler counts, module by module, into RUN/profile."""


class FaultsConfig(Section):
    """What is done when a run breaks; see docs/training.md."""

    on_non_finite: Literal["stop", "roll_back"] = "stop"
    """After too many steps in a row without a finite loss and gradient: end the run, or go back to the newest good
    checkpoint and on with the samples after the offending ones."""
    max_non_finite_steps: PositiveInt = 5
    """Steps in a row that are skipped before that is done."""
    max_roll_backs: NonNegativeInt = 3
    """Roll backs in a whole run; one more ends it."""
    spike_sigma: NonNegativeFloat = 6.0
    """A loss this many standard deviations above the mean of the steps before is announced as a spike; 0 for never."""
    spike_window: Annotated[int, Field(ge=8)] = 128
    """Steps that mean and deviation are taken over; nothing is announced before as many have been taken."""
    skip_spikes: bool = False
    """Go back to the newest good checkpoint and on with the samples after the spike."""
    step_timeout_seconds: PositiveFloat = 300.0
    """A part of a step (loading data, forward pass, ...) that takes longer ends the job, with the stacks of all ranks
    in RUN/stacks."""
    long_timeout_seconds: PositiveFloat = 3600.0
    """The same for the first step, evaluation, sampling and saving."""
    stop_deadline_seconds: PositiveFloat = 100.0
    """A process that has not ended this long after it was asked to stop ends at once, saved or not."""
    straggler_ratio: Annotated[float, Field(gt=1.0)] = 1.5
    """The slowest rank is named when its own work takes this many times the median, several reports in a row."""
