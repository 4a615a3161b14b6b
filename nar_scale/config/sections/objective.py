"""The section `objective`: what is learned, in four kinds."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, NonNegativeFloat, NonNegativeInt, PositiveInt
from pydantic import model_validator as validator

from nar_scale.config.sections.section import FixedOnResume, Fraction, Kind, Probability, Unit, reads_all_kinds


class AutoregressiveConfig(Kind):
    """Predict each token from those before it."""

    # what every kind is asked for, and this one does not have
    schedule: ClassVar[None] = None
    num_classes: ClassVar[None] = None
    prefix_length: ClassVar[int] = 0

    kind: Annotated[Literal["autoregressive"], FixedOnResume()] = Field(
        description="Predicts each token from those before it, with a `Decoder`.",
    )
    mask_prob: Fraction = Field(
        default=0.0,
        description="Fraction of the input tokens hidden in training (forgetful causal masking, arXiv:2210.13432).",
    )
    attention_z_loss: bool = Field(
        default=False,
        description="Add the attention z-loss, which keeps attention logits small (ST-MoE, arXiv:2202.08906).",
    )


class _MaskedConfig(Kind):
    """What the kinds that predict masked tokens have in common."""

    schedule: Literal["linear", "cosine", "uniform_count"] = Field(
        default="linear",
        description="Masked fraction over the progress of unmasking, in training and in decoding.",
    )
    training_schedule: Literal["linear", "cosine", "uniform_count", "bell"] | None = Field(
        default=None,
        description="Masked fraction in training alone; that of `schedule` if not given. `bell` has the density "
        "Beta(2, 2): few sequences are masked nearly whole or hardly at all (arXiv:2605.13026).",
    )
    loss: Literal["weighted", "unweighted"] = Field(
        default="weighted",
        description="Training loss: `weighted` into a bound on the likelihood (arXiv:2406.07524), or the `unweighted` "
        "mean over masked tokens (arXiv:2202.04200). Evaluation reports the bound with either.",
    )
    masking: Literal["exact", "bernoulli"] = Field(
        default="exact",
        description="Mask exactly the scheduled number of tokens, or each token with that probability.",
    )
    num_classes: Annotated[PositiveInt | None, FixedOnResume(), Unit("classes")] = Field(
        default=None,
        description="Number of classes that the model is conditional on; `data.class_field` names that of a sample.",
    )
    prefix_length: Annotated[NonNegativeInt, FixedOnResume(), Unit("tokens")] = Field(
        default=0,
        description="First tokens of each sequence that are given: they are never masked, predicted or counted.",
    )
    condition_drop_prob: Fraction = Field(
        default=0.0,
        description="Fraction of the sequences trained without class and prefix, which guidance needs.",
    )
    no_replace_prob: Probability = Field(
        default=0.0,
        description="Fraction of the masked tokens left as they are (BERT), in half of the sequences.",
    )
    random_token_prob: Probability = Field(
        default=0.0,
        description="Fraction of the masked tokens replaced by random ones (BERT), in half of the sequences.",
    )

    @validator(mode="after")
    def _dropped_conditions_exist(self) -> "_MaskedConfig":
        conditional = self.num_classes is not None or self.prefix_length > 0
        if not conditional and self.condition_drop_prob:
            raise ValueError("condition_drop_prob needs num_classes or prefix_length")
        return self

    @validator(mode="after")
    def _weights_are_bounded(self) -> "_MaskedConfig":
        if (self.training_schedule, self.masking, self.loss) == ("bell", "bernoulli", "weighted"):
            raise ValueError(
                "training_schedule bell with masking bernoulli gives weights without bound; "
                "use masking exact or loss unweighted"
            )
        return self


class NonAutoregressiveConfig(_MaskedConfig):
    """Predict masked tokens from all others."""

    kind: Annotated[Literal["non_autoregressive"], FixedOnResume()] = Field(
        description="Predicts masked tokens from all others, with an `Encoder`.",
    )
    self_conditioning: Annotated[bool, FixedOnResume()] = Field(
        default=False,
        description="Condition each pass on the embeddings of the one before (arXiv:2208.04202).",
    )
    self_conditioning_train_prob: Probability = Field(
        default=0.75,
        description="Fraction of the sequences trained with self-conditioning.",
    )
    self_token_critic: Annotated[bool, FixedOnResume()] = Field(
        default=False,
        description="Train the net to tell which of its own tokens to keep in decoding as well.",
    )
    critic_loss_weight: NonNegativeFloat = Field(
        default=1.0,
        description="Weight of the critic's loss beside that of the masked tokens.",
    )


class BlockDiffusionConfig(_MaskedConfig):
    """Predict masked tokens of a block from the rest of it and the blocks before."""

    kind: Annotated[Literal["block_diffusion"], FixedOnResume()] = Field(
        description="Predicts masked tokens of a block from the rest of the block and the blocks before it "
        "(arXiv:2503.09573).",
    )
    block_size: Annotated[PositiveInt, FixedOnResume(), Unit("tokens")] = Field(
        default=16,
        description="Tokens that are unmasked together, block after block from left to right; divides "
        "`model.max_seq_len`.",
    )


class HybridConfig(Kind):
    """Predict each token from those before it, and masked tokens of a block from the rest of it and all before."""

    # what every kind is asked for, and this one does not choose or does not have
    schedule: ClassVar[Literal["linear"]] = "linear"
    num_classes: ClassVar[None] = None
    prefix_length: ClassVar[int] = 0

    kind: Annotated[Literal["hybrid"], FixedOnResume()] = Field(
        description="One `Decoder` learns both, to predict the next token and to unmask blocks, so that it can draft "
        "blocks of tokens and verify them itself.",
    )
    block_size: Annotated[int, FixedOnResume(), Unit("tokens"), Field(ge=2)] = Field(
        description="Tokens that are unmasked together and drafted at a time; divides `model.max_seq_len`.",
    )
    autoregressive_weight: NonNegativeFloat = Field(
        default=1.0,
        description="Weight of the loss of the next token.",
    )
    diffusion_weight: NonNegativeFloat = Field(
        default=0.3,
        description="Weight of block diffusion's loss beside it.",
    )

    @validator(mode="after")
    def _something_is_learned(self) -> "HybridConfig":
        if not self.autoregressive_weight + self.diffusion_weight:
            raise ValueError("autoregressive_weight and diffusion_weight are both 0; one must be above")
        return self


_Kinds = AutoregressiveConfig | NonAutoregressiveConfig | BlockDiffusionConfig | HybridConfig

_FORMER_LOSSES = {"mdlm": "weighted", "maskgit": "unweighted"}


def _former_names(values: Any) -> Any:
    """Read the names that the losses had in earlier checkpoints."""
    if not isinstance(values, Mapping) or not isinstance(values.get("loss"), str):
        return values
    return {**values, "loss": _FORMER_LOSSES.get(values["loss"], values["loss"])}


ObjectiveConfig = Annotated[
    _Kinds, Field(discriminator="kind"), reads_all_kinds(_Kinds), BeforeValidator(_former_names)  # runs first
]
"""What is learned."""
