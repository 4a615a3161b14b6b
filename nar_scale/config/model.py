"""The sections `model` and `objective`: what is learned, and by which transformer."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, field_validator
from pydantic import model_validator as validator

from nar_scale.config.section import Fraction, Probability, Section


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
