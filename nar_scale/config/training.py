"""The sections `optimizer`, `schedule`, `training` and `zero`: how weights are learned, and by how many ranks."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, field_validator
from pydantic import model_validator as validator

from nar_scale.config.section import Fraction, Probability, Section


class OptimizerConfig(Section):
    """How weights follow from gradients; matrices are decayed, vectors (norms, biases) and embeddings are not."""

    kind: Literal["adamw", "lion", "muon"] = "adamw"
    """`muon` moves the matrices of the blocks by orthogonal steps, and everything else as `adamw` does."""
    learning_rate: PositiveFloat
    """Of AdamW or Lion; with `muon` of what AdamW takes care of."""
    betas: Annotated[tuple[Fraction, Fraction], Field(strict=False)] = (0.9, 0.95)
    eps: PositiveFloat = 1e-8
    """Of AdamW."""
    weight_decay: NonNegativeFloat = 0.1
    gradient_clipping: NonNegativeFloat = 1.0
    """Largest global gradient norm; 0 switches clipping off."""
    muon_learning_rate: PositiveFloat = 0.02
    """Spectral norm of a Muon step."""
    muon_momentum: Fraction = 0.95
    """What of Muon's average of gradients stays in a step."""

    @validator(mode="after")
    def _belongs_to_kind(self) -> OptimizerConfig:
        for name in ("muon_learning_rate", "muon_momentum"):
            if self.kind != "muon" and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} means nothing to kind {self.kind}, only to muon; leave it out")
        return self


class ScheduleConfig(Section):
    """The learning rate over the run, as a factor of `optimizer.learning_rate`."""

    kind: Literal["cosine", "wsd", "constant", "inverse_sqrt"] = "cosine"
    """After a linear warm-up; `inverse_sqrt` falls as sqrt(warmup_steps / step), whatever the length of the run."""
    warmup_steps: NonNegativeInt = 0
    decay_fraction: Annotated[float, Field(gt=0.0, le=1.0)] = 0.2
    """`wsd`: the last part of the run, in which the rate falls linearly."""
    final_factor: Probability = 0.1
    """The factor at the last step of `cosine` and `wsd`."""


class BatchSizeStage(Section):
    """Size of the global batch from a step on."""

    from_step: NonNegativeInt
    global_batch_size: PositiveInt


class TrainingConfig(Section):
    """How long, how wide and in which precision."""

    steps: PositiveInt | None = None
    """Length of the run in optimizer steps. Give this, `samples` or `tokens`."""
    samples: PositiveInt | None = None
    """Length of the run in sequences; the last step is taken whole."""
    tokens: PositiveInt | None = None
    """Length of the run in tokens, `model.max_seq_len` to a sequence; the last step is taken whole."""

    @field_validator("samples", "tokens", mode="before")
    @classmethod
    def _written_with_an_exponent(cls, value: object) -> object:
        """Read 2e9 as the whole number that it is."""
        return int(value) if isinstance(value, float) and value.is_integer() else value

    global_batch_size: PositiveInt
    """Sequences in one optimizer step, over all ranks and accumulation."""
    batch_size_warmup: Annotated[tuple[BatchSizeStage, ...], Field(strict=False)] = ()
    """Smaller global batches at first: sizes from steps on, the first from step 0, the last of `global_batch_size`."""
    micro_batch_size: PositiveInt
    """Sequences in one forward pass of one rank; accumulation follows from the other numbers."""
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    """Of weights in forward and backward pass; master weights and moments are kept in float32 beside them."""
    master_weights: Literal["fp32", "bf16"] = "fp32"
    """`bf16`, with precision bf16 and ZeRO 1 to 3, keeps no float32 copy: master weights, gradients and moments in
    bfloat16, for about half of the memory at a loss of small updates."""
    initial_loss_scale: PositiveInt = 2**16
    """What the loss is multiplied by in fp16 at first, a power of two; it halves when gradients overflow."""
    loss_scale_window: PositiveInt = 1000
    """Steps in fp16 without overflow after which the scale doubles."""
    zero_stage: Literal[0, 1, 2, 3] = 2
    sequence_parallel_size: PositiveInt = 1
    """Consecutive ranks that share each sequence in training (Ulysses), for sequences too long for one; divides
    `model.max_seq_len`, `model.heads` and the number of ranks."""
    ema_decay: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Also keep a moving average of the weights, of which this much stays in a step, such as 0.9999; none if null."""
    seed: NonNegativeInt = 0
    run_directory: str | None = None
    """Checkpoints, logs and samples; `runs/NAME` with the name of the YAML file if not given."""

    @validator(mode="after")
    def _one_length(self) -> TrainingConfig:
        given = [name for name in ("steps", "samples", "tokens") if getattr(self, name) is not None]
        if len(given) != 1:
            found = " and ".join(given) if given else "none"
            raise ValueError(f"give the length of the run as one of steps, samples and tokens, not {found}")
        return self

    @validator(mode="after")
    def _batch_sizes_fit(self) -> TrainingConfig:
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
    def _precision_fits(self) -> TrainingConfig:
        if self.master_weights == "bf16" and (self.precision != "bf16" or self.zero_stage == 0):
            raise ValueError("master_weights bf16 needs precision bf16 and zero_stage 1, 2 or 3")
        if self.initial_loss_scale & (self.initial_loss_scale - 1):
            raise ValueError(f"initial_loss_scale {self.initial_loss_scale} is not a power of two")
        return self


Offload = Literal["none", "cpu", "nvme"]


class ZeroConfig(Section):
    """Where ZeRO keeps what it shards, and how it sends it; see docs/training.md for what goes with which stage."""

    offload_optimizer: Offload = "none"
    """Master weights and moments in the node's memory or on its disk, where steps are then taken. ZeRO 1 to 3; nvme
    needs 3."""
    offload_parameters: Offload = "none"
    """The same for the weights of forward and backward pass. ZeRO 3."""
    offload_directory: str | None = None
    """On a quick disk of each node, for nvme."""
    hpz_partition_size: PositiveInt = 1
    """ZeRO++: ranks, those of a node, that hold another whole copy of the weights, so that the backward pass gathers
    within the node; 1 for none. ZeRO 3."""
    quantized_weights: bool = False
    """ZeRO++: gather weights as int8. ZeRO 3."""
    quantized_gradients: bool = False
    """ZeRO++: reduce gradients as int4. ZeRO 3."""

    @validator(mode="after")
    def _disk_fits(self) -> ZeroConfig:
        if ("nvme" in (self.offload_optimizer, self.offload_parameters)) != (self.offload_directory is not None):
            raise ValueError("offload to nvme and offload_directory are needed together: give both or neither")
        return self
