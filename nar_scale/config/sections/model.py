"""The section `model`: the transformer."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, PositiveFloat, PositiveInt, field_validator
from pydantic import model_validator as validator

from nar_scale.config.sections.section import FixedOnResume, Fraction, Operational, Section, Unit


class ModelConfig(Section):
    """The transformer. It is an `Encoder` or a `Decoder`, as `objective.kind` demands."""

    model_config = ConfigDict(allow_inf_nan=False)  # no such network can be built

    dim: Annotated[PositiveInt, FixedOnResume(), Unit("channels")] = Field(
        description="Width of the residual stream.",
    )
    depth: Annotated[PositiveInt, FixedOnResume(), Unit("blocks")] = Field(
        description="Number of transformer blocks.",
    )
    heads: Annotated[PositiveInt, FixedOnResume(), Unit("heads")] = Field(
        description="Number of query heads of each attention layer.",
    )
    max_seq_len: Annotated[PositiveInt, FixedOnResume(), Unit("tokens")] = Field(
        description="Length of a sequence. The data must have been prepared with this `--seq-len` or a shorter one.",
    )
    dim_head: Annotated[PositiveInt | None, FixedOnResume(), Unit("channels")] = Field(
        default=None,
        description="Width of a head; `dim` divided by `heads` if not given.",
    )
    kv_heads: Annotated[PositiveInt | None, FixedOnResume(), Unit("heads")] = Field(
        default=None,
        description="Key/value heads, each shared by a group of query heads; as many as `heads` if not given.",
    )
    feedforward: Annotated[Literal["swiglu", "geglu", "gelu"], FixedOnResume()] = Field(
        default="swiglu",
        description="Activation of the feed-forward layers; `swiglu` and `geglu` are gated.",
    )
    feedforward_mult: Annotated[PositiveFloat, FixedOnResume()] = Field(
        default=4.0,
        description="Hidden width of the feed-forward layers as a multiple of `dim`; gated layers use two thirds of "
        "it, for the same number of parameters.",
    )
    feedforward_dim: Annotated[PositiveInt | None, FixedOnResume(), Unit("channels")] = Field(
        default=None,
        description="Hidden width of the feed-forward layers, which replaces `feedforward_mult`.",
    )
    feedforward_bias: Annotated[bool, FixedOnResume()] = Field(
        default=False,
        description="Add biases to the feed-forward layers.",
    )
    norm: Annotated[Literal["rmsnorm", "layernorm"], FixedOnResume()] = Field(
        default="rmsnorm",
        description="Normalisation before each layer and before the output projection.",
    )
    norm_eps: Annotated[PositiveFloat | None, FixedOnResume()] = Field(
        default=None,
        description="Added to the variance in normalisation; 1e-6 for RMSNorm and 1e-5 for LayerNorm if not given.",
    )
    positions: Annotated[Literal["rotary", "learned"], FixedOnResume()] = Field(
        default="rotary",
        description="Position encoding: rotary, which is relative, or learned absolute embeddings.",
    )
    rotary_theta: Annotated[PositiveFloat, FixedOnResume()] = Field(
        default=10_000.0,
        description="Base of the wavelengths of rotary positions.",
    )
    rotary_dim: Annotated[PositiveInt | None, FixedOnResume(), Unit("channels")] = Field(
        default=None,
        description="Channels of a head that are rotated; all of them if not given.",
    )
    rotary_interpolation_factor: Annotated[float, Field(ge=1.0), FixedOnResume()] = Field(
        default=1.0,
        description="Divides rotary positions, to run on longer sequences than a model has learned (arXiv:2306.15595).",
    )
    rotary_base_rescale_factor: Annotated[float, Field(ge=1.0), FixedOnResume()] = Field(
        default=1.0,
        description="Stretches the long rotary wavelengths (NTK-aware scaling), to run on longer sequences as well.",
    )
    qk_norm: Annotated[bool, FixedOnResume()] = Field(
        default=False,
        description="Normalise queries and keys, which keeps attention logits small.",
    )
    qk_bias: Annotated[bool, FixedOnResume()] = Field(
        default=False,
        description="Biases of queries and keys, which rotary positions make a learned bias of distance; each head "
        "looks at one of the nearest tokens at first. Short runs of small models learn more with it.",
    )
    window: Annotated[PositiveInt | None, FixedOnResume(), Unit("tokens")] = Field(
        default=None,
        description="Sliding window: a token attends to those less than this many positions away; to all if not given.",
    )
    embedding_std: Annotated[PositiveFloat, FixedOnResume()] = Field(
        default=0.02,
        description="Standard deviation of the embeddings of tokens, learned positions and classes before training. "
        "Short runs of small models learn more with 0.5 where embeddings are not tied.",
    )
    tie_embeddings: Annotated[bool, FixedOnResume()] = Field(
        default=False,
        description="Use the token embeddings as the output projection.",
    )
    tie_embedding_scale: Annotated[PositiveFloat, FixedOnResume()] = Field(
        default=1.0,
        description="Factor on the logits where embeddings are tied.",
    )
    dropout: Fraction = Field(
        default=0.0,
        description="Probability of dropping attention weights, hidden units and outputs of layers in training.",
    )
    attention_kernel: Annotated[Literal["sdpa", "flex"], Operational()] = Field(
        default="sdpa",
        description="`sdpa` is torch's scaled dot-product attention; `flex` (FlexAttention) skips what a window, "
        "documents or padding hide, and has no dropout and no attention z-loss.",
    )
    activation_checkpointing: Annotated[Literal["none", "full", "selective"], Operational()] = Field(
        default="none",
        description="Recompute activations in the backward pass: none, those of each block, or only the cheap ones "
        "(not matrix products and attention).",
    )
    compile: Annotated[bool, Operational()] = Field(
        default=False,
        description="Run each block through `torch.compile` in training.",
    )
    logits_chunk_size: Annotated[PositiveInt, Operational(), Unit("logits")] = Field(
        default=2**26,
        description="Logits (tokens times vocabulary) that a loss computes at a time; fewer need less memory.",
    )

    @field_validator("activation_checkpointing", mode="before")
    @classmethod
    def _was_a_switch(cls, value: object) -> object:
        """Read what the first checkpoints have in their config.yaml."""
        return {False: "none", True: "full"}[value] if isinstance(value, bool) else value

    @validator(mode="after")
    def _heads_fit(self) -> "ModelConfig":
        if self.dim_head is None and self.dim % self.heads:
            raise ValueError(f"dim {self.dim} is not divisible by heads {self.heads}; give dim_head or change one")
        if self.kv_heads is not None and self.heads % self.kv_heads:
            raise ValueError(f"heads {self.heads} is not divisible by kv_heads {self.kv_heads}")
        if self.attention_kernel == "flex" and self.dropout:
            raise ValueError("attention_kernel flex has no dropout; use sdpa or dropout 0")
        return self
