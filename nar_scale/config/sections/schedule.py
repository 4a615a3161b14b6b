"""The section `schedule`: the learning rate over the run, in four kinds."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt

from nar_scale.config.sections.section import Kind, Probability, Unit, reads_all_kinds


class _ScheduleConfig(Kind):
    """What all schedules have: a linear warm-up."""

    warmup_steps: Annotated[NonNegativeInt, Unit("steps")] = Field(
        default=0,
        description="Steps over which the learning rate rises linearly to its peak.",
    )


class _DecayingConfig(_ScheduleConfig):
    """What the schedules have that end at a given learning rate."""

    final_factor: Probability = Field(
        default=0.1,
        description="Learning rate of the last step, as a fraction of the peak.",
    )


class CosineScheduleConfig(_DecayingConfig):
    """A cosine from the peak to the final factor."""

    kind: Literal["cosine"] = Field(
        default="cosine",
        description="After the warm-up, falls along a cosine to `final_factor` at the last step.",
    )


class WSDScheduleConfig(_DecayingConfig):
    """Warm-up, stable, decay."""

    kind: Literal["wsd"] = Field(
        description="Warm-up, stable, decay: stays at the peak, then falls linearly to `final_factor` over the last "
        "`decay_fraction` of the run (arXiv:2404.06395).",
    )
    decay_fraction: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        default=0.2,
        description="Last part of the run, in which the learning rate falls.",
    )


class ConstantScheduleConfig(_ScheduleConfig):
    """The peak for the rest of the run."""

    kind: Literal["constant"] = Field(
        description="Stays at the peak after the warm-up.",
    )


class InverseSqrtScheduleConfig(_ScheduleConfig):
    """The inverse square root of the step."""

    kind: Literal["inverse_sqrt"] = Field(
        description="After the warm-up, falls as sqrt(`warmup_steps` / step), whatever the length of the run "
        "(arXiv:1706.03762, section 5.3).",
    )


_Kinds = CosineScheduleConfig | WSDScheduleConfig | ConstantScheduleConfig | InverseSqrtScheduleConfig
_IGNORED = frozenset({"decay_fraction", "final_factor"})

ScheduleConfig = Annotated[_Kinds, Field(discriminator="kind"), reads_all_kinds(_Kinds, _IGNORED)]
"""The learning rate over the run."""
