"""The section `decoding`: how samples are drawn from the model, a class for each sampler.

It is recorded in checkpoints and exports, and is what samples in training, evaluation and generation workers use unless
they are told otherwise.
"""

from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)

from nar_scale.config.sections.section import Section, Unit

Threshold = Annotated[float, Field(gt=0.0, le=1.0)]
_STEPS = (
    "Network calls for a sequence at most; in blocks at least one for each, not counting another for each but the "
    "last, which caches it"
)
Temperature = Annotated[float, Field(ge=0.0, le=10_000.0)]
"""At the highest of these temperatures all tokens are about equally probable."""


def _as_tuple(values: Any) -> Any:
    return tuple(values) if isinstance(values, list) else values


class _Decoding(Section):
    """What all samplers have; a subclass narrows `sampler`, its first field, to its name."""

    model_config = ConfigDict(allow_inf_nan=False)

    sampler: str
    temperature: Temperature = Field(
        default=1.0,
        description="Divides the logits; 0 takes the most probable token. With `confidence` it falls linearly to 0.",
    )
    top_k: Annotated[PositiveInt | None, Unit("tokens")] = Field(
        default=None,
        description="Only so many of the most probable tokens are eligible at each position; null for all.",
    )
    top_p: Threshold | None = Field(
        default=None,
        description="Only the most probable tokens that together reach this probability are eligible at each position "
        "(arXiv:1904.09751); null for all.",
    )
    guidance: NonNegativeFloat = Field(
        default=1.0,
        description="Strength of classifier-free guidance (arXiv:2207.12598); 1 for none.",
    )
    stop: Annotated[tuple[str, ...], BeforeValidator(_as_tuple)] = Field(
        default=(),
        description="A text that continues a prompt, or begins from scratch, ends before the first of these.",
    )


class AutoDecoding(_Decoding):
    """The sampler that suits the model."""

    sampler: Literal["auto"] = Field(
        default="auto",
        description="What suits the objective: `left_to_right`, `self_speculative`, `random`, or with a token critic "
        "`confidence`; checkpoints record which.",
    )
    steps: Annotated[PositiveInt | None, Unit("network calls")] = Field(
        default=None,
        description=f"{_STEPS}; null for the sampler's own number.",
    )


class _Unmasking(_Decoding):
    """What the samplers have that fill in masks."""

    steps: Annotated[PositiveInt | None, Unit("network calls")] = Field(
        default=None,
        description=f"{_STEPS}; null for as many as there are tokens to fill in.",
    )


class _FewSteps(_Decoding):
    """What the samplers have that reveal a scheduled number of tokens in each call."""

    steps: Annotated[PositiveInt | None, Unit("network calls")] = Field(
        default=18,
        description=f"{_STEPS}; null for as many as there are tokens to fill in.",
    )


class ConfidenceDecoding(_FewSteps):
    """Reveal the tokens with the highest probability first."""

    sampler: Literal["confidence"] = Field(
        description="Reveals the most probable of the sampled tokens first, or those that the token critic trusts, "
        "while the temperature falls to 0 (MaskGIT, arXiv:2202.04200).",
    )


class EntropyDecoding(_FewSteps):
    """Reveal the positions with the lowest entropy first."""

    sampler: Literal["entropy"] = Field(
        description="Reveals the positions with the lowest entropy first.",
    )


class MarginDecoding(_FewSteps):
    """Reveal the positions first at which the two most probable tokens differ most."""

    sampler: Literal["margin"] = Field(
        description="Reveals the positions first at which the two most probable tokens differ most in probability "
        "(arXiv:2502.06768).",
    )


class RandomDecoding(_Unmasking):
    """Reveal positions in random order."""

    sampler: Literal["random"] = Field(
        description="Reveals positions in random order, a scheduled number in each call; with one token a call this "
        "draws from the model's own distribution (MDLM, arXiv:2406.07524).",
    )


class FirstHittingDecoding(_Unmasking):
    """Reveal positions one by one at the times at which continuous-time sampling would."""

    sampler: Literal["first_hitting"] = Field(
        description="Reveals positions in random order at the times at which continuous-time sampling would, one a "
        "call, or those that fall into the same of `steps` intervals together (arXiv:2409.02908).",
    )


class ThresholdDecoding(_Unmasking):
    """Reveal all tokens that are probable enough."""

    sampler: Literal["threshold"] = Field(
        description="Reveals all tokens whose probability reaches `threshold`, at least one a call (arXiv:2505.22618).",
    )
    threshold: Threshold = Field(default=0.9, description="Probability from which on a token is revealed.")


class FactorDecoding(_Unmasking):
    """Reveal more tokens together the more probable they are."""

    sampler: Literal["factor"] = Field(
        description="Reveals the j most probable tokens for the largest j of which the least probable has at least the "
        "probability 1 - `factor` / (j + 1), at least one a call (arXiv:2505.22618).",
    )
    factor: PositiveFloat = Field(default=1.0, description="Larger values reveal more tokens a call.")


class EntropyBoundDecoding(_Unmasking):
    """Reveal as many positions together as their entropies allow."""

    sampler: Literal["entropy_bound"] = Field(
        description="Reveals, from the lowest entropy on, as many positions as have a sum of entropies less the "
        "largest of at most `entropy_bound`, at least one a call (arXiv:2505.24857).",
    )
    entropy_bound: Annotated[NonNegativeFloat, Unit("nats")] = Field(
        default=0.1,
        description="Bound on the error of drawing the tokens of a call independently.",
    )


class RemaskDecoding(_Unmasking):
    """Mask revealed tokens again with a small probability, and draw them anew."""

    sampler: Literal["remask"] = Field(
        description="Reveals positions in random order and masks revealed ones again with a small probability, so that "
        "mistakes can be mended (ReMDM, arXiv:2503.00307).",
    )
    remask_rule: Literal["cap", "rescale"] = Field(
        default="cap",
        description="The largest probability of masking again that leaves the distribution as it is, is limited to "
        "`remask_amount`, or multiplied by it.",
    )
    remask_amount: Threshold = Field(default=0.008, description="The limit or factor of `remask_rule`.")


class WinoDecoding(_Unmasking):
    """Reveal many tokens together, and take back those that look wrong among the others."""

    sampler: Literal["wino"] = Field(
        description="Reveals all tokens whose probability reaches `reveal_threshold`, and masks those again whose "
        "probability, seen with the other tokens, is below `keep_threshold` (arXiv:2507.18578).",
    )
    reveal_threshold: Threshold = Field(default=0.6, description="Probability from which on a token is revealed.")
    keep_threshold: Threshold = Field(default=0.9, description="Probability from which on a token stays revealed.")


class LeftToRightDecoding(_Decoding):
    """One token after another."""

    sampler: Literal["left_to_right"] = Field(
        description="Draws one token after another, for the kinds `autoregressive` and `hybrid`.",
    )
    prompt_lookup: Annotated[NonNegativeInt, Unit("tokens")] = Field(
        default=0,
        description="Proposes so many tokens in each network call, those that followed the last ones where these stood "
        "before, and verifies them in it: the same samples, in fewer calls where texts repeat themselves; 0 for none.",
    )


class SelfSpeculativeDecoding(_Decoding):
    """Draft a block by diffusion and verify it left to right."""

    sampler: Literal["self_speculative"] = Field(
        description="Drafts a block of tokens in one call and verifies them left to right in another, which gives the "
        "same distribution as `left_to_right` (arXiv:2211.17192); for the kind `hybrid`.",
    )
    shared_calls: bool = Field(
        default=True,
        description="A network call verifies a draft and makes the next one: fewer calls, each of `block_size` squared "
        "masks more, for GPUs and few sequences; otherwise one call drafts and another verifies.",
    )


UnmaskingConfig = (
    ConfidenceDecoding
    | RandomDecoding
    | EntropyDecoding
    | MarginDecoding
    | FirstHittingDecoding
    | ThresholdDecoding
    | FactorDecoding
    | EntropyBoundDecoding
    | RemaskDecoding
    | WinoDecoding
)
"""The samplers that fill in masks."""

SamplerConfig = UnmaskingConfig | LeftToRightDecoding | SelfSpeculativeDecoding
"""All samplers."""

DecodingConfig = Annotated[AutoDecoding | SamplerConfig, Field(discriminator="sampler")]
"""How samples are drawn."""


def _name_of(sampler: Any) -> str:
    return str(get_args(sampler.model_fields["sampler"].annotation)[0])


SAMPLERS: dict[str, type[Any]] = {_name_of(sampler): sampler for sampler in get_args(SamplerConfig)}
"""The class of each sampler by its name."""

UNMASKING_SAMPLERS = tuple(_name_of(sampler) for sampler in get_args(UnmaskingConfig))
"""The names of the samplers that fill in masks."""

UNSCHEDULED_SAMPLERS = ("threshold", "factor", "entropy_bound", "wino")
"""The names of those that take as many network calls as they need."""
