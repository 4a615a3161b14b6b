"""The whole YAML file: its sections together, and what they must fulfil together.

Each section is described where it is defined, in `nar_scale/config/sections`; `docs/config.md` lists all keys. Every
key has one meaning and one default; an unknown key is an error that names the nearest valid one. Whether a run can
start with a configuration is another matter, see `nar_scale/config/checks.py`.
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, cast

from pydantic import Field
from pydantic import model_validator as validator

from nar_scale.config.sections.checkpoint import CheckpointConfig
from nar_scale.config.sections.data import DataConfig
from nar_scale.config.sections.decoding import SAMPLERS, UNMASKING_SAMPLERS, AutoDecoding, DecodingConfig, SamplerConfig
from nar_scale.config.sections.faults import FaultsConfig
from nar_scale.config.sections.logging import LoggingConfig
from nar_scale.config.sections.model import ModelConfig
from nar_scale.config.sections.objective import ObjectiveConfig
from nar_scale.config.sections.optimizer import OptimizerConfig
from nar_scale.config.sections.schedule import CosineScheduleConfig, ScheduleConfig
from nar_scale.config.sections.section import FixedOnResume, Operational, Section
from nar_scale.config.sections.training import TrainingConfig
from nar_scale.config.sections.zero import ZeroConfig

_FROM_SCRATCH = ("random", *(name for name in UNMASKING_SAMPLERS if name != "random"))  # benchmarks/EXPERIMENTS.md

SAMPLERS_OF_KIND: dict[str, tuple[str, ...]] = {
    "autoregressive": ("left_to_right",),
    "non_autoregressive": _FROM_SCRATCH,
    "block_diffusion": _FROM_SCRATCH,
    "hybrid": ("self_speculative", "left_to_right", *UNMASKING_SAMPLERS),
}
"""The samplers that each kind of objective has, the one of `auto` first, unless there is a token critic."""


class Config(Section):
    """A whole run."""

    model: ModelConfig
    objective: ObjectiveConfig = Field(description="What is learned.")
    data: DataConfig
    decoding: Annotated[DecodingConfig, Operational()] = Field(
        default_factory=AutoDecoding,
        description="How samples are drawn from the model, in training and, by default, from its checkpoints.",
    )
    optimizer: OptimizerConfig = Field(description="How weights follow from gradients.")
    schedule: ScheduleConfig = Field(
        default_factory=CosineScheduleConfig,
        description="The learning rate over the run, as a factor on the learning rates of `optimizer`.",
    )
    training: TrainingConfig
    zero: ZeroConfig = Field(default_factory=ZeroConfig)
    checkpoint: Annotated[CheckpointConfig, Operational()] = Field(default_factory=CheckpointConfig)
    logging: Annotated[LoggingConfig, Operational()] = Field(default_factory=LoggingConfig)
    faults: Annotated[FaultsConfig, Operational()] = Field(default_factory=FaultsConfig)
    deepspeed: dict[str, Any] = Field(
        default={},
        description="Raw DeepSpeed settings, merged over what the other sections derive: they win.",
    )

    @validator(mode="before")
    @classmethod
    def _fill_in_sampler(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and isinstance(values.get("decoding"), Mapping):
            return {**values, "decoding": {"sampler": "auto", **values["decoding"]}}
        return values

    @validator(mode="after")
    def _decoding_fits(self) -> "Config":
        objective, decoding = self.objective, self.decoding
        samplers = SAMPLERS_OF_KIND[objective.kind]
        if decoding.sampler not in ("auto", *samplers):
            raise ValueError(
                f"decoding.sampler {decoding.sampler} is not for objective.kind {objective.kind}; use one of "
                f"auto, {', '.join(samplers)}"
            )
        default = SAMPLERS[samplers[0]]
        if decoding.sampler == "auto" and decoding.steps is not None and "steps" not in default.model_fields:
            raise ValueError(f"decoding.steps is not for objective.kind {objective.kind}; leave it out")
        if decoding.guidance != 1 and objective.num_classes is None and not objective.prefix_length:
            raise ValueError("decoding.guidance needs objective.num_classes or objective.prefix_length")
        return self

    def sampler(self) -> SamplerConfig:
        """How samples are drawn, with the sampler that `auto` stands for."""
        if not isinstance(self.decoding, AutoDecoding):
            return self.decoding
        name = SAMPLERS_OF_KIND[self.objective.kind][0]
        if getattr(self.objective, "self_token_critic", False):
            name = "confidence"  # the critic decides in the place of the confidence
        given = {key: value for key, value in self.decoding if key in SAMPLERS[name].model_fields and value is not None}
        return cast(SamplerConfig, SAMPLERS[name].model_validate({**given, "sampler": name}))

    @validator(mode="after")
    def _objective_fits(self) -> "Config":
        length, objective = self.model.max_seq_len, self.objective
        if objective.kind in ("block_diffusion", "hybrid") and length % objective.block_size:
            raise ValueError(
                f"model.max_seq_len {length} is not a multiple of objective.block_size {objective.block_size}"
            )
        if objective.prefix_length and self.data.document_field is not None:
            raise ValueError("objective.prefix_length and data.document_field exclude each other")
        if objective.prefix_length >= length:
            raise ValueError(
                f"objective.prefix_length {objective.prefix_length} is not below model.max_seq_len {length}"
            )
        if objective.kind == "autoregressive" and objective.attention_z_loss and self.model.attention_kernel == "flex":
            raise ValueError("objective.attention_z_loss needs model.attention_kernel sdpa")
        return self

    @validator(mode="after")
    def _classes_fit(self) -> "Config":
        if (self.objective.num_classes is None) != (self.data.class_field is None):
            raise ValueError("objective.num_classes and data.class_field are needed together: give both or neither")
        return self


def fixed_on_resume(config: Config) -> dict[str, Any]:
    """The settings that must not change between a checkpoint and a run resumed from it: `section.key` to value."""
    sections = {name: getattr(config, name) for name in Config.model_fields if name != "deepspeed"}
    return {
        f"{section}.{name}": getattr(values, name)
        for section, values in sections.items()
        for name, field in type(values).model_fields.items()
        if FixedOnResume() in field.metadata
    }


def flat_settings(config: Config) -> dict[str, Any]:
    """All settings, `section.key` to a value as in JSON."""
    return dict(_flattened(config.model_dump(mode="json"), ""))


def learned_settings(config: Config) -> dict[str, Any]:
    """Of `flat_settings` those that have a part in what is learned: without what is marked as `Operational`."""
    operational = tuple(f"{path}." for path in _operational(config, ""))
    return {key: value for key, value in flat_settings(config).items() if not f"{key}.".startswith(operational)}


def _operational(values: Any, prefix: str) -> Iterator[str]:
    """The paths of fields and sections that are marked as `Operational`, in a section or a mapping of sections."""
    if isinstance(values, Mapping):
        for name, value in values.items():
            yield from _operational(value, f"{prefix}{name}.")
    elif isinstance(values, Section):
        for name, field in type(values).model_fields.items():
            if Operational() in field.metadata:
                yield f"{prefix}{name}"
            else:
                yield from _operational(getattr(values, name), f"{prefix}{name}.")


def _flattened(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
