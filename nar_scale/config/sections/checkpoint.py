"""The section `checkpoint`: when checkpoints are written and which are kept."""

from typing import Annotated

from pydantic import Field, NonNegativeInt, PositiveInt

from nar_scale.config.sections.section import Section, Unit


class CheckpointConfig(Section):
    """When checkpoints are written and which are kept."""

    every: Annotated[PositiveInt, Unit("steps")] = Field(
        default=1000,
        description="Steps between checkpoints; one is also written at the end and on a stop signal.",
    )
    keep_last: Annotated[PositiveInt, Unit("checkpoints")] = Field(
        default=2,
        description="Number of newest checkpoints that are kept.",
    )
    keep_every: Annotated[PositiveInt | None, Unit("steps")] = Field(
        default=None,
        description="Also keep all checkpoints at multiples of this many steps; none if not given.",
    )
    asynchronous: bool = Field(
        default=False,
        description="Continue training while a checkpoint is written, which takes as much memory of the host as the "
        "checkpoint is large.",
    )
    consolidate_every: Annotated[NonNegativeInt, Unit("steps")] = Field(
        default=0,
        description="Steps between consolidated checkpoints, which a process beside the run writes to "
        "`RUN/consolidated`; 0 for none.",
    )
    license: str | None = Field(
        default=None,
        description="Licence of the model as Hugging Face names it, such as `apache-2.0`, for its model card; unknown "
        "if not given.",
    )
