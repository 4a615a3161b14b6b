"""The section `training`: length of the run, batch sizes, seed, precision, and how ranks divide the work."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator
from pydantic import model_validator as validator

from nar_scale.config.sections.section import FixedOnResume, LocalPath, Operational, Section, Unit


class BatchSizeStage(Section):
    """Size of the global batch from a step on."""

    from_step: Annotated[NonNegativeInt, Unit("steps")] = Field(
        description="First step of the stage, counted from 0.",
    )
    global_batch_size: Annotated[PositiveInt, Unit("sequences")] = Field(
        description="Global batch size from that step on.",
    )


class TrainingConfig(Section):
    """How long, with how many ranks and in which precision."""

    steps: Annotated[PositiveInt | None, Unit("steps")] = Field(
        default=None,
        description="Length of the run in optimizer steps. Give this, `samples` or `tokens`.",
    )
    samples: Annotated[PositiveInt | None, Unit("sequences")] = Field(
        default=None,
        description="Length of the run in sequences, instead of `steps`; the last step is taken whole.",
    )
    tokens: Annotated[PositiveInt | None, Unit("tokens")] = Field(
        default=None,
        description="Length of the run in tokens, `model.max_seq_len` to a sequence, instead of `steps`; the last step "
        "is taken whole.",
    )
    global_batch_size: Annotated[PositiveInt, Unit("sequences")] = Field(
        description="Sequences in one optimizer step, over all ranks and micro-batches.",
    )
    batch_size_warmup: Annotated[tuple[BatchSizeStage, ...], Field(strict=False)] = Field(
        default=(),
        description="Smaller global batches at first: stages of ascending steps, the first from step 0, the last with "
        "`global_batch_size`. A resumed run must keep the sizes of the steps that have been taken.",
    )
    micro_batch_size: Annotated[PositiveInt, Operational(), Unit("sequences")] = Field(
        description="Sequences in one forward pass of one rank; the number of micro-batches in a step follows from it.",
    )
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        default="bf16",
        description="Type of the weights in the forward and backward pass; master weights and moments are kept in "
        "float32 beside them.",
    )
    master_weights: Literal["fp32", "bf16"] = Field(
        default="fp32",
        description="`bf16` keeps no float32 copy: master weights, gradients and moments are bfloat16, for about half "
        "of the memory at a loss of small updates. It needs precision bf16 and ZeRO 1 to 3.",
    )
    initial_loss_scale: PositiveInt = Field(
        default=2**16,
        description="Factor on the loss at the start of an fp16 run, a power of two; it is halved when gradients "
        "overflow.",
    )
    loss_scale_window: Annotated[PositiveInt, Unit("steps")] = Field(
        default=1000,
        description="Steps without overflow after which the loss scale of an fp16 run is doubled.",
    )
    zero_stage: Annotated[Literal[0, 1, 2, 3], Operational()] = Field(
        default=2,
        description="What ZeRO shards over the ranks: nothing (0), the optimizer state (1), gradients as well (2), or "
        "weights as well (3).",
    )
    sequence_parallel_size: Annotated[PositiveInt, Operational(), Unit("ranks")] = Field(
        default=1,
        description="Consecutive ranks that process each sequence together (DeepSpeed-Ulysses, arXiv:2309.14509); "
        "divides `model.max_seq_len`, `model.heads` and the number of ranks.",
    )
    ema_decay: Annotated[float, Field(gt=0.0, lt=1.0)] | None = Field(
        default=None,
        description="Decay rate per step of a moving average of the weights, such as 0.9999; no average is kept if not "
        "given.",
    )
    seed: Annotated[NonNegativeInt, FixedOnResume()] = Field(
        default=0,
        description="Seed of initial weights, order of samples, masks and dropout.",
    )
    run_directory: Annotated[LocalPath | None, Operational()] = Field(
        default=None,
        description="Directory of checkpoints, logs and samples; `runs/NAME` with the name of the YAML file if not "
        "given.",
    )

    @field_validator("samples", "tokens", mode="before")
    @classmethod
    def _written_with_an_exponent(cls, value: object) -> object:
        """Read 2e9 as the whole number that it is."""
        return int(value) if isinstance(value, float) and value.is_integer() else value

    @validator(mode="after")
    def _one_length(self) -> "TrainingConfig":
        given = [name for name in ("steps", "samples", "tokens") if getattr(self, name) is not None]
        if len(given) != 1:
            found = " and ".join(given) if given else "none"
            raise ValueError(f"give the length of the run as one of steps, samples and tokens, not {found}")
        return self

    @validator(mode="after")
    def _batch_sizes_fit(self) -> "TrainingConfig":
        starts = [stage.from_step for stage in self.batch_size_warmup]
        if starts and (starts[0] != 0 or starts != sorted(set(starts))):
            raise ValueError(f"batch_size_warmup starts at steps {starts}; start at 0 and ascend")
        if starts and self.batch_size_warmup[-1].global_batch_size != self.global_batch_size:
            raise ValueError(
                f"batch_size_warmup ends with {self.batch_size_warmup[-1].global_batch_size} sequences; let it end "
                f"with global_batch_size {self.global_batch_size}"
            )
        return self

    @validator(mode="after")
    def _precision_fits(self) -> "TrainingConfig":
        if self.master_weights == "bf16" and (self.precision != "bf16" or self.zero_stage == 0):
            raise ValueError("master_weights bf16 needs precision bf16 and zero_stage 1, 2 or 3")
        if self.initial_loss_scale & (self.initial_loss_scale - 1):
            raise ValueError(f"initial_loss_scale {self.initial_loss_scale} is not a power of two")
        return self
