"""The sections of a YAML file, typed and validated.

Every key has one meaning and one default; an unknown key is an error that names the nearest valid one.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
)
from pydantic import model_validator as validator

from nar_scale.config.length import steps_of_run

Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]


class Section(BaseModel):
    """Base of every section: no unknown keys, no silent conversion between types, immutable."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class ModelConfig(Section):
    """The transformer. Whether it is an `Encoder` or a `Decoder` follows from `objective.kind`."""

    dim: PositiveInt
    depth: PositiveInt
    heads: PositiveInt
    max_seq_len: PositiveInt
    """Tokens in a sequence; the data must have been prepared with this `--seq-len` or a shorter one."""
    dim_head: PositiveInt | None = None
    """Channels a head; `dim // heads` if not given."""
    kv_heads: PositiveInt | None = None
    """Key/value heads, shared by groups of query heads; as many as `heads` if not given."""
    feedforward: Literal["swiglu", "geglu", "gelu"] = "swiglu"
    feedforward_mult: PositiveFloat = 4.0
    """Hidden width over `dim`; the gated forms use two thirds of it, for the same number of parameters."""
    feedforward_dim: PositiveInt | None = None
    """The hidden width itself, instead of `feedforward_mult`."""
    feedforward_bias: bool = False
    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    norm_eps: PositiveFloat | None = None
    """1e-6 for RMSNorm and 1e-5 for LayerNorm if not given."""
    positions: Literal["rotary", "learned"] = "rotary"
    rotary_theta: PositiveFloat = 10_000.0
    rotary_dim: PositiveInt | None = None
    """Channels of a head that are rotated; all if not given."""
    rotary_interpolation_factor: Annotated[float, Field(ge=1.0)] = 1.0
    """Divides positions, to run on longer sequences than the model has learned."""
    rotary_base_rescale_factor: Annotated[float, Field(ge=1.0)] = 1.0
    """NTK-aware scaling, for the same end."""
    qk_norm: bool = False
    window: PositiveInt | None = None
    """A token attends to those less than this many places away; all if not given."""
    tie_embeddings: bool = False
    tie_embedding_scale: PositiveFloat = 1.0
    """Of the logits, where embeddings are tied."""
    dropout: Fraction = 0.0
    attention_kernel: Literal["sdpa", "flex"] = "sdpa"
    """`flex` skips what a window or padding hides; it has no dropout and no attention z-loss."""
    activation_checkpointing: Literal["none", "full", "selective"] = "none"
    """Recompute in the backward pass: each block, or only what is cheap (not matrix products and attention)."""
    compile: bool = False
    """Run each block through `torch.compile` in training."""
    logits_chunk_size: PositiveInt = 2**26
    """Logits (tokens times vocabulary) that a loss computes at a time; smaller takes less memory."""

    @field_validator("activation_checkpointing", mode="before")
    @classmethod
    def _was_a_switch(cls, value: object) -> object:
        """Read what the first checkpoints have in their config.yaml."""
        return {False: "none", True: "full"}[value] if isinstance(value, bool) else value

    @validator(mode="after")
    def _heads_fit(self) -> ModelConfig:
        if self.dim_head is None and self.dim % self.heads:
            raise ValueError(f"dim {self.dim} is not divisible by heads {self.heads}; give dim_head or change one")
        if self.kv_heads is not None and self.heads % self.kv_heads:
            raise ValueError(f"heads {self.heads} is not divisible by kv_heads {self.kv_heads}")
        if self.attention_kernel == "flex" and self.dropout:
            raise ValueError("attention_kernel flex has no dropout; use sdpa or dropout 0")
        return self


_OF_MASKED = (
    *("schedule", "loss", "masking", "steps", "no_replace_prob", "random_token_prob"),
    *("num_classes", "prefix_length", "condition_drop_prob", "guidance_scale"),
)
_OBJECTIVE_KEYS = {
    "non_autoregressive": (
        *_OF_MASKED,
        *("self_conditioning", "self_conditioning_train_prob", "self_token_critic", "critic_loss_weight"),
    ),
    "block_diffusion": ("block_size", *_OF_MASKED),
    "autoregressive": ("mask_prob", "attention_z_loss"),
}


class ObjectiveConfig(Section):
    """What is learned. Keys belong to the kind named beside them; non-autoregressive ones to block diffusion too, but
    for self-conditioning and the critic."""

    kind: Literal["non_autoregressive", "block_diffusion", "autoregressive"]
    block_size: PositiveInt = 16
    """Block diffusion: tokens that are demasked together, block after block from left to right."""
    schedule: Literal["linear", "cosine", "uniform_count"] = "linear"
    """Non-autoregressive: masked fraction over the progress of unmasking, in training and decoding."""
    loss: Literal["mdlm", "maskgit"] = "mdlm"
    """Non-autoregressive: `mdlm` weighs the loss into a likelihood bound, `maskgit` is the unweighted choice."""
    masking: Literal["exact", "bernoulli"] = "exact"
    """Non-autoregressive: mask exactly the scheduled number of tokens, or each with that probability."""
    steps: PositiveInt = 18
    """Non-autoregressive: network calls in `generate`."""
    num_classes: PositiveInt | None = None
    """Non-autoregressive: condition on a class, which `data.class_field` names."""
    prefix_length: NonNegativeInt = 0
    """Non-autoregressive: first tokens of each sequence that are given, never masked, predicted or counted."""
    condition_drop_prob: Fraction = 0.0
    """Non-autoregressive: fraction of the sequences trained without class and prefix, for guidance."""
    guidance_scale: NonNegativeFloat = 1.0
    """Non-autoregressive: classifier-free guidance in decoding; 1 for none."""
    no_replace_prob: Probability = 0.0
    """Non-autoregressive: fraction of masked tokens left as they are (BERT), in half of the sequences."""
    random_token_prob: Probability = 0.0
    """Non-autoregressive: fraction of masked tokens replaced by random ones (BERT), in half of the sequences."""
    self_conditioning: bool = False
    """Non-autoregressive: condition each pass on the embeddings of the one before."""
    self_conditioning_train_prob: Probability = 0.75
    self_token_critic: bool = False
    """Non-autoregressive: let the net itself judge which tokens to keep while decoding."""
    critic_loss_weight: NonNegativeFloat = 1.0
    mask_prob: Fraction = 0.0
    """Autoregressive: fraction of input tokens hidden in training (forgetful causal masking)."""
    attention_z_loss: bool = False
    """Autoregressive: add the attention z-loss."""

    @validator(mode="after")
    def _options_fit(self) -> ObjectiveConfig:
        for name, field in type(self).model_fields.items():
            if name not in ("kind", *_OBJECTIVE_KEYS[self.kind]) and getattr(self, name) != field.default:
                owners = " and ".join(kind for kind, keys in _OBJECTIVE_KEYS.items() if name in keys)
                raise ValueError(f"{name} means nothing to kind {self.kind}, only to {owners}; leave it out")
        conditional = self.num_classes is not None or self.prefix_length > 0
        if not conditional and (self.condition_drop_prob or self.guidance_scale != 1):
            raise ValueError("condition_drop_prob and guidance_scale need num_classes or prefix_length")
        return self


class SourceConfig(Section):
    """One of several data sets that are mixed."""

    directory: str
    """As `data.directory`."""
    train: str | None = None
    """As `data.train`, which it falls back to."""
    validation: str | None = None
    """As `data.validation`, which it falls back to."""
    weight: NonNegativeFloat | None = None
    """Share of the samples; weights need not sum to 1."""
    epochs: PositiveFloat | None = None
    """Instead of a weight: how often this source is passed over while the others are as often as they say."""


class CurriculumStage(Section):
    """Weights of the sources from a step on."""

    from_step: NonNegativeInt
    weights: dict[str, NonNegativeFloat]
    """By source; one that is not named gets nothing."""


class DataConfig(Section):
    """Where the shards are and how they are read."""

    directory: str | None = None
    """A directory that `launcher/prepare.py` wrote, or any folder of WebDataset shards; a path or an http(s)://, s3://
    or gs:// URL."""
    sources: dict[str, SourceConfig] = {}
    """Several named data sets instead of one, mixed by weight, by epochs, or if neither is given by size."""
    temperature: PositiveFloat = 1.0
    """Sources without weights or epochs get their size to the power of 1 / temperature."""
    curriculum: Annotated[tuple[CurriculumStage, ...], Field(strict=False)] = ()
    """Other weights from some steps on."""
    train: str = "train/*.tar"
    """Shards to train on, a glob pattern below `directory`; over http, where nothing can be listed, `*.tar` takes what
    dataset.json counts, and other shards are named by `train/shard-{000000..000099}.tar`."""
    validation: str = "validation/*.tar"
    """Held-out shards; an empty string if there are none."""
    field: str = "tokens.npy"
    """The member of each sample that holds the token ids, a one-dimensional integer array."""
    class_field: str | None = None
    """The member that holds the class of each sample, an integer as text (WebDataset's `cls`) or a `.npy`."""
    document_field: str | None = None
    """The member that says which document each token of a sample belongs to, as `prepare.py --document-ids` writes it:
    attention, positions and predictions then stay within documents."""
    tokenizer: str | None = None
    """`byte` or a tokenizer file; what `dataset.json` names if not given."""
    vocabulary_size: PositiveInt | None = None
    """Number of token ids; what `dataset.json` says if not given."""
    index_directory: str | None = None
    """Where shard indices are kept when they cannot stand beside the shards."""
    cache_directory: str | None = None
    """Where copies of remote shards are kept, on a disk of each node."""
    cache_gib: PositiveFloat = 100.0
    """Most that these copies take on a node, in GiB."""
    storage_options: dict[str, Any] = {}
    """Passed to fsspec for remote shards, such as credentials or an endpoint."""
    memory_map: bool = True
    """Read shards through memory maps. On a network file system that now and then fails, switch it off: reading is
    then slower and repeated on errors, which a memory map does not survive."""
    max_skipped_samples: NonNegativeInt = 0
    """Samples that may be unusable: they are skipped, named and counted. One more ends the run; 0 for none."""
    shuffle_window: PositiveInt = 8
    """Shards among which samples are mixed at a time."""
    loader_workers: NonNegativeInt = 1
    """Reading processes a rank."""
    prefetch: PositiveInt = 2
    """Micro-batches that each of them reads ahead."""
    sequential: bool = False
    """Allow `.tar.gz` shards and `pipe:` commands, which a shell runs. Inexact: samples come more or less often than
    once an epoch, and in another order after a restart."""

    @validator(mode="after")
    def _one_way_to_name_data(self) -> DataConfig:
        if (self.directory is None) == (not self.sources):
            raise ValueError("give either directory or sources")
        if self.sequential and self.sources:
            raise ValueError("sequential streams are not mixed; give a directory")
        if self.directory is not None and (self.curriculum or self.temperature != 1):
            raise ValueError("curriculum and temperature need sources")
        for name, remote in (("directory", self.directory), *((k, v.directory) for k, v in self.sources.items())):
            if remote is not None and "://" in remote and self.cache_directory is None and not self.sequential:
                raise ValueError(f"{name} {remote} is remote: give cache_directory, on a disk of each node")
        return self

    @validator(mode="after")
    def _weights_fit(self) -> DataConfig:
        given = [source for source in self.sources.values() if source.weight is not None or source.epochs is not None]
        by_epochs = [source for source in given if source.epochs is not None]
        if any(source.weight is not None for source in by_epochs) or 0 < len(by_epochs) < len(given):
            raise ValueError("sources have weights or epochs, not both")
        if given and len(given) < len(self.sources):
            raise ValueError("give every source a weight, or epochs, or none of them")
        if given and self.temperature != 1:
            raise ValueError("temperature means nothing to sources with weights or epochs")
        for stage in self.curriculum:
            unknown = [name for name in stage.weights if name not in self.sources]
            if unknown:
                raise ValueError(f"curriculum names {unknown[0]!r}, which is none of {', '.join(self.sources)}")
        steps = [stage.from_step for stage in self.curriculum]
        if steps != sorted(set(steps)):
            raise ValueError(f"curriculum starts at steps {steps}; let them ascend")
        return self


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
    bfloat16, for two fifths of the memory at a loss of small updates."""
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

    @validator(mode="after")
    def _profile_fits(self) -> LoggingConfig:
        if self.profile_steps is not None and self.profile_steps[0] > self.profile_steps[1]:
            raise ValueError(f"profile_steps {list(self.profile_steps)}: give the first step before the last")
        return self


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


class Config(Section):
    """A whole run."""

    model: ModelConfig
    objective: ObjectiveConfig
    data: DataConfig
    optimizer: OptimizerConfig
    schedule: ScheduleConfig = ScheduleConfig()
    training: TrainingConfig
    zero: ZeroConfig = ZeroConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    logging: LoggingConfig = LoggingConfig()
    faults: FaultsConfig = FaultsConfig()
    deepspeed: dict[str, Any] = {}
    """Raw DeepSpeed settings, merged over what the other sections derive: they win."""

    @validator(mode="after")
    def _objective_fits(self) -> Config:
        length, objective = self.model.max_seq_len, self.objective
        if objective.kind == "block_diffusion" and length % objective.block_size:
            raise ValueError(
                f"model.max_seq_len {length} is not a multiple of objective.block_size {objective.block_size}"
            )
        if objective.prefix_length and self.data.document_field is not None:
            raise ValueError("objective.prefix_length and data.document_field exclude each other")
        if objective.prefix_length >= length:
            raise ValueError(
                f"objective.prefix_length {objective.prefix_length} is not below model.max_seq_len {length}"
            )
        if objective.attention_z_loss and self.model.attention_kernel == "flex":
            raise ValueError("objective.attention_z_loss needs model.attention_kernel sdpa")
        return self

    @validator(mode="after")
    def _sequences_divide(self) -> Config:
        peers = self.training.sequence_parallel_size
        for name, number in (("max_seq_len", self.model.max_seq_len), ("heads", self.model.heads)):
            if number % peers:
                raise ValueError(f"model.{name} {number} is not a multiple of training.sequence_parallel_size {peers}")
        return self

    @validator(mode="after")
    def _classes_fit(self) -> Config:
        if (self.objective.num_classes is None) != (self.data.class_field is None):
            raise ValueError("objective.num_classes and data.class_field are needed together: give both or neither")
        return self

    @validator(mode="after")
    def _image_fits(self) -> Config:
        shape, length = self.logging.image_shape, self.model.max_seq_len
        if shape is not None and self.objective.kind == "autoregressive":
            raise ValueError("logging.image_shape needs a non-autoregressive model, whose samples have a fixed length")
        if shape is not None and shape[0] * shape[1] != length:
            raise ValueError(
                f"logging.image_shape {shape[0]} x {shape[1]} has {shape[0] * shape[1]} pixels, but model.max_seq_len "
                f"is {length}"
            )
        return self

    @validator(mode="after")
    def _warmup_fits(self) -> Config:
        steps = steps_of_run(self)
        if self.schedule.warmup_steps >= steps:
            raise ValueError(f"schedule.warmup_steps {self.schedule.warmup_steps} is not below training.steps {steps}")
        if self.training.batch_size_warmup and self.data.sequential:
            raise ValueError("training.batch_size_warmup needs an exact stream, not data.sequential")
        return self

    @validator(mode="after")
    def _offload_fits(self) -> Config:
        training, zero = self.training, self.zero
        needs_3 = {
            "offload_parameters": zero.offload_parameters != "none",
            "offload_optimizer nvme": zero.offload_optimizer == "nvme",
            "hpz_partition_size": zero.hpz_partition_size > 1,
            "quantized_weights": zero.quantized_weights,
            "quantized_gradients": zero.quantized_gradients,
        }
        for name, wanted in needs_3.items():
            if wanted and training.zero_stage != 3:
                raise ValueError(f"zero.{name} needs training.zero_stage 3, not {training.zero_stage}")
        if zero.offload_optimizer != "none" and training.zero_stage == 0:
            raise ValueError("zero.offload_optimizer needs training.zero_stage 1, 2 or 3, not 0")
        if zero.offload_optimizer != "none" and training.master_weights == "bf16":
            raise ValueError("training.master_weights bf16 and zero.offload_optimizer exclude each other")
        return self

    @validator(mode="after")
    def _muon_fits(self) -> Config:
        if self.optimizer.kind == "muon" and self.zero.offload_optimizer == "nvme":
            raise ValueError("optimizer.kind muon and zero.offload_optimizer nvme exclude each other; use cpu")
        return self
