"""The section `faults`: what is done when a run breaks."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from nar_scale.config.sections.section import Section, Unit


class FaultsConfig(Section):
    """What is done when a run breaks; docs/training.md has the details."""

    on_non_finite: Literal["stop", "roll_back"] = Field(
        default="stop",
        description="After too many steps in a row without a finite loss and gradient: end the run, or go back to the "
        "newest good checkpoint and continue with the samples after those of these steps.",
    )
    max_non_finite_steps: Annotated[PositiveInt, Unit("steps")] = Field(
        default=5,
        description="Steps in a row that are skipped as non-finite before `on_non_finite` applies.",
    )
    max_roll_backs: Annotated[NonNegativeInt, Unit("roll-backs")] = Field(
        default=3,
        description="Roll-backs in a whole run; one more ends it.",
    )
    spike_sigma: Annotated[NonNegativeFloat, Unit("standard deviations")] = Field(
        default=6.0,
        description="A loss this far above the mean of the steps before it is reported as a spike; 0 for never.",
    )
    spike_window: Annotated[int, Field(ge=8), Unit("steps")] = Field(
        default=128,
        description="Steps over which mean and standard deviation of the loss are taken; no spike is reported before "
        "that many.",
    )
    skip_spikes: bool = Field(
        default=False,
        description="After a spike, go back to the newest good checkpoint and continue with the samples after it.",
    )
    step_timeout_seconds: Annotated[PositiveFloat, Unit("s")] = Field(
        default=300.0,
        description="A part of a step (loading data, forward pass, ...) that takes longer ends the job, with the "
        "stacks of all ranks in `RUN/stacks`.",
    )
    long_timeout_seconds: Annotated[PositiveFloat, Unit("s")] = Field(
        default=3600.0,
        description="A first step, evaluation, sampling or saving that takes longer ends the job in the same way.",
    )
    stop_deadline_seconds: Annotated[PositiveFloat, Unit("s")] = Field(
        default=100.0,
        description="A process that has not ended this long after it was asked to stop ends at once, with or without a "
        "checkpoint.",
    )
    straggler_ratio: Annotated[float, Field(gt=1.0)] = Field(
        default=1.5,
        description="The slowest rank is named when its own work takes this many times the median, in several reports "
        "in a row.",
    )
