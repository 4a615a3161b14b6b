"""How samples are drawn: what is asked for, and what a model carries with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from typing import Annotated, Any, cast

from pydantic import Field, ValidationError
from pydantic import model_validator as validator
from torch import Tensor

from nar_scale.config import SAMPLERS, Config, SamplerConfig
from nar_scale.config.sections.section import Section
from nar_scale.errors import UserError
from nar_scale.text import message_of

StepCallback = Callable[[Tensor, int], None]
"""Is called after each network call with the tokens of all sequences, int64 `[batch, n]`, and its number from 1.

Masked tokens are the mask token; left to right, n grows with what has been generated.
"""

_COMMON = ("temperature", "top_k", "top_p", "guidance", "stop")  # what all samplers have
_OF_VERSION_0_1 = ("sampler", "steps", "temperature", "guidance_scale")


class DecodeManifest(Section):
    """How samples are drawn from a model by default: recorded in its checkpoint, so that a score can be reproduced.

    Attributes:
        decoding: sampler and settings.
        schedule: of the masked fraction; None for a model that generates left to right.
        mask_id: the mask token; None for a model that generates left to right.
        end_token: the token that ends a document; None if it is unknown.
        block_size: tokens of a block of block diffusion; None for other models.
    """

    decoding: Annotated[SamplerConfig, Field(discriminator="sampler")]
    schedule: str | None
    mask_id: int | None
    end_token: int | None
    block_size: int | None = None

    @validator(mode="before")
    @classmethod
    def _read_version_0_1(cls, values: Any) -> Any:
        """Read manifests that had the settings beside each other, the critic as a sampler, and no others."""
        if not isinstance(values, Mapping) or "sampler" not in values:
            return values
        settings: dict[str, Any] = {"sampler": values["sampler"], "temperature": values["temperature"]}
        if settings["sampler"] != "left_to_right":
            settings |= {"sampler": "confidence", "steps": values["steps"]}
            settings["guidance"] = values.get("guidance_scale", 1.0)
        others = {name: value for name, value in values.items() if name not in _OF_VERSION_0_1}
        return {**others, "decoding": settings}

    @classmethod
    def of(cls, config: Config, mask_id: int | None, end_token: int | None) -> DecodeManifest:
        """What the configuration of a run says of decoding, with the sampler that `auto` stands for.

        Args:
            config: of the run.
            mask_id: the mask token; None for a model that has none.
            end_token: ends a document; None if it is unknown.
        """
        return cls(
            decoding=config.sampler(),
            schedule=config.objective.schedule,
            mask_id=mask_id,
            end_token=end_token,
            block_size=getattr(config.objective, "block_size", None),
        )


@dataclass(frozen=True)
class SamplingOptions:
    """What is asked for when samples are drawn; None stands for what the model carries with it.

    Attributes:
        temperature: divides the logits, at least 0.
        sampler: the name of a sampler, see `nar_scale.config.sections.decoding`.
        steps: network calls for a sequence, at least 1.
        top_k: number of tokens that are eligible at each position, at least 1.
        top_p: probability of the tokens that are eligible at each position, in (0, 1].
        guidance: scale of classifier-free guidance, at least 0.
        stop: texts, before the first of which a generated text ends.
        sampler_options: settings of the sampler by name, such as `threshold`.
        length: tokens of a sequence with its prompt, at least 1, or None for the longest that the model can make.
        seed: of all randomness, an integer of 64 bits.

    Raises:
        UserError: the length or the seed is out of range.
    """

    temperature: float | None = None
    sampler: str | None = None
    steps: int | None = None
    top_k: int | None = None
    top_p: float | None = None
    guidance: float | None = None
    stop: tuple[str, ...] | None = None
    sampler_options: Mapping[str, Any] = field(default_factory=dict)
    length: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.length is not None and self.length < 1:
            raise UserError(f"length cannot be {self.length}; give at least 1")
        if not -(2**63) <= self.seed < 2**63:
            raise UserError(f"seed cannot be {self.seed}; give an integer of 64 bits")

    def resolve(self, default: SamplerConfig) -> SamplerConfig:
        """The settings of the model with those that are asked for in their place.

        With another sampler than the model's, settings that all samplers have stay the model's, and others are the
        sampler's own defaults.

        Args:
            default: of the model, from its decode manifest.

        Raises:
            UserError: an unknown sampler, a setting that the sampler does not have, or one out of range.
        """
        named = {name: getattr(self, name) for name in (*_COMMON, "steps")}
        asked = {**{name: value for name, value in named.items() if value is not None}, **self.sampler_options}
        return resolve_decoding(default, self.sampler, asked)

    def as_dict(self) -> dict[str, Any]:
        """The options by name."""
        return asdict(self)


def resolve_decoding(default: SamplerConfig, sampler: str | None, settings: Mapping[str, Any]) -> SamplerConfig:
    """Settings of a sampler, from the default with some replaced.

    Args:
        default: sampler and settings.
        sampler: the name of the sampler; None for that of the default.
        settings: by name.

    Raises:
        UserError: an unknown sampler, a setting that the sampler does not have, or one out of range.
    """
    name = default.sampler if sampler is None else sampler
    if name not in SAMPLERS:
        raise UserError(f"unknown sampler {name!r}; use one of {', '.join(SAMPLERS)}")
    own = SAMPLERS[name].model_fields
    foreign = next((setting for setting in settings if setting not in own), None)
    if foreign is not None:
        owners = [other for other, section in SAMPLERS.items() if foreign in section.model_fields]
        if owners:
            raise UserError(
                f"{foreign} belongs to the sampler {' or '.join(owners)}, not to {name}; leave it out or choose that "
                "sampler"
            )
        near = get_close_matches(foreign, [*own, "length", "seed"], 1)
        raise UserError(
            f"{foreign} is no setting of any sampler; {f'did you mean {near[0]}?' if near else 'leave it out'}"
        )
    kept = default.model_dump() if name == default.sampler else {each: getattr(default, each) for each in _COMMON}
    try:
        return cast(SamplerConfig, SAMPLERS[name].model_validate({**kept, "sampler": name, **settings}))
    except ValidationError as error:
        problem = error.errors()[0]
        setting = ".".join(map(str, problem["loc"]))
        raise UserError(
            f"{setting} of the sampler {name}: {message_of(problem)}, not {problem['input']!r:.60}"
        ) from None
