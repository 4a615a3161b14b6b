"""The section `logging`: what is reported during a run, and how often."""

from typing import Annotated

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from nar_scale.config.sections.section import Section, Unit


class LoggingConfig(Section):
    """What is reported during a run, and how often."""

    every: Annotated[PositiveInt, Unit("steps")] = Field(
        default=10,
        description="Steps between lines in the metrics log, TensorBoard and the progress display.",
    )
    evaluate_every: Annotated[NonNegativeInt, Unit("steps")] = Field(
        default=0,
        description="Steps between evaluations on validation data; 0 for none. One more runs at the end of training.",
    )
    evaluation_samples: Annotated[PositiveInt, Unit("sequences")] = Field(
        default=1024,
        description="Sequences of validation data in an evaluation.",
    )
    sample_every: Annotated[NonNegativeInt, Unit("steps")] = Field(
        default=0,
        description="Steps between generated samples in TensorBoard; 0 for none.",
    )
    samples: Annotated[PositiveInt, Unit("sequences")] = Field(
        default=2,
        description="Sequences that are generated every `sample_every` steps.",
    )
    image_shape: Annotated[tuple[PositiveInt, PositiveInt] | None, Field(strict=False), Unit("pixels")] = Field(
        default=None,
        description="Height and width, where tokens are the grey levels of an image, row by row: samples are then "
        "shown as images.",
    )
    peak_flops: Annotated[PositiveFloat | None, Unit("FLOP/s")] = Field(
        default=None,
        description="Peak performance of a device in the precision of the run, for the MFU; known for some GPUs in "
        "bf16.",
    )
    profile_steps: Annotated[tuple[PositiveInt, PositiveInt] | None, Field(strict=False), Unit("steps")] = Field(
        default=None,
        description="First and last step to trace with torch's profiler, into `RUN/profile`.",
    )
    profile_ranks: Annotated[tuple[NonNegativeInt, ...], Field(strict=False)] = Field(
        default=(0,),
        description="Ranks that are traced in `profile_steps`.",
    )
    flops_step: Annotated[PositiveInt | None, Unit("steps")] = Field(
        default=None,
        description="Step of which DeepSpeed's profiler counts the FLOPs, module by module, into `RUN/profile`.",
    )
