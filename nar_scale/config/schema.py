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
    """AdamW; matrices are decayed, vectors (norms, biases) and embeddings are not."""

    kind: Literal["adamw"] = "adamw"
    learning_rate: PositiveFloat
    betas: Annotated[tuple[Fraction, Fraction], Field(strict=False)] = (0.9, 0.95)
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.1
    gradient_clipping: NonNegativeFloat = 1.0
    """Largest global gradient norm; 0 switches clipping off."""


class ScheduleConfig(Section):
    """The learning rate over the run, as a factor of `optimizer.learning_rate`."""

    kind: Literal["cosine", "wsd", "constant"] = "cosine"
    warmup_steps: NonNegativeInt = 0
    decay_fraction: Annotated[float, Field(gt=0.0, le=1.0)] = 0.2
    """`wsd`: the last part of the run, in which the rate falls linearly."""
    final_factor: Probability = 0.1
    """The factor at the last step of `cosine` and `wsd`."""


class TrainingConfig(Section):
    """How long, how wide and in which precision."""

    steps: PositiveInt
    global_batch_size: PositiveInt
    """Sequences in one optimizer step, over all ranks and accumulation."""
    micro_batch_size: PositiveInt
    """Sequences in one forward pass of one rank; accumulation follows from the other numbers."""
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    zero_stage: Literal[0, 1, 2, 3] = 2
    ema_decay: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Also keep a moving average of the weights, of which this much stays in a step, such as 0.9999; none if null."""
    seed: NonNegativeInt = 0
    run_directory: str | None = None
    """Checkpoints, logs and samples; `runs/NAME` with the name of the YAML file if not given."""


class CheckpointConfig(Section):
    """When checkpoints are written and which are kept."""

    every: PositiveInt = 1000
    """Steps between checkpoints; one is also written at the end and on a stop signal."""
    keep_last: PositiveInt = 2
    keep_every: PositiveInt | None = None
    """Steps whose multiples are never deleted."""


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


class Config(Section):
    """A whole run."""

    model: ModelConfig
    objective: ObjectiveConfig
    data: DataConfig
    optimizer: OptimizerConfig
    schedule: ScheduleConfig = ScheduleConfig()
    training: TrainingConfig
    checkpoint: CheckpointConfig = CheckpointConfig()
    logging: LoggingConfig = LoggingConfig()
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
        if self.schedule.warmup_steps >= self.training.steps:
            raise ValueError(
                f"schedule.warmup_steps {self.schedule.warmup_steps} is not below training.steps {self.training.steps}"
            )
        return self
