"""The YAML file as typed, validated objects."""

from nar_scale.config.batch_sizes import (
    batch_size_at,
    first_step_from,
    gradient_accumulation_steps,
    samples_before,
    steps_of_run,
)
from nar_scale.config.checks import check_run
from nar_scale.config.deepspeed import resolve_deepspeed_config
from nar_scale.config.key_descriptions import Key, config_reference
from nar_scale.config.load import dump_config, load_config, override_config, validate_config
from nar_scale.config.schema import SAMPLERS_OF_KIND, Config, fixed_on_resume, flat_settings, learned_settings
from nar_scale.config.sections.checkpoint import CheckpointConfig
from nar_scale.config.sections.data import DataConfig, SourceConfig
from nar_scale.config.sections.decoding import (
    SAMPLERS,
    UNMASKING_SAMPLERS,
    UNSCHEDULED_SAMPLERS,
    AutoDecoding,
    ConfidenceDecoding,
    DecodingConfig,
    EntropyBoundDecoding,
    EntropyDecoding,
    FactorDecoding,
    FirstHittingDecoding,
    LeftToRightDecoding,
    MarginDecoding,
    RandomDecoding,
    RemaskDecoding,
    SamplerConfig,
    SelfSpeculativeDecoding,
    ThresholdDecoding,
    UnmaskingConfig,
    WinoDecoding,
)
from nar_scale.config.sections.faults import FaultsConfig
from nar_scale.config.sections.logging import LoggingConfig
from nar_scale.config.sections.model import ModelConfig
from nar_scale.config.sections.objective import (
    AutoregressiveConfig,
    BlockDiffusionConfig,
    HybridConfig,
    NonAutoregressiveConfig,
    ObjectiveConfig,
)
from nar_scale.config.sections.optimizer import AdamWConfig, LionConfig, MuonConfig, OptimizerConfig
from nar_scale.config.sections.schedule import (
    ConstantScheduleConfig,
    CosineScheduleConfig,
    InverseSqrtScheduleConfig,
    ScheduleConfig,
    WSDScheduleConfig,
)
from nar_scale.config.sections.training import BatchSizeStage, TrainingConfig
from nar_scale.config.sections.zero import ZeroConfig

__all__ = [
    "SAMPLERS",
    "SAMPLERS_OF_KIND",
    "UNMASKING_SAMPLERS",
    "UNSCHEDULED_SAMPLERS",
    "AdamWConfig",
    "AutoDecoding",
    "AutoregressiveConfig",
    "BatchSizeStage",
    "BlockDiffusionConfig",
    "CheckpointConfig",
    "ConfidenceDecoding",
    "Config",
    "ConstantScheduleConfig",
    "CosineScheduleConfig",
    "DataConfig",
    "DecodingConfig",
    "EntropyBoundDecoding",
    "EntropyDecoding",
    "FactorDecoding",
    "FaultsConfig",
    "FirstHittingDecoding",
    "HybridConfig",
    "InverseSqrtScheduleConfig",
    "Key",
    "LeftToRightDecoding",
    "LionConfig",
    "LoggingConfig",
    "MarginDecoding",
    "ModelConfig",
    "MuonConfig",
    "NonAutoregressiveConfig",
    "ObjectiveConfig",
    "OptimizerConfig",
    "RandomDecoding",
    "RemaskDecoding",
    "SamplerConfig",
    "ScheduleConfig",
    "SelfSpeculativeDecoding",
    "SourceConfig",
    "ThresholdDecoding",
    "TrainingConfig",
    "UnmaskingConfig",
    "WSDScheduleConfig",
    "WinoDecoding",
    "ZeroConfig",
    "batch_size_at",
    "check_run",
    "config_reference",
    "dump_config",
    "first_step_from",
    "fixed_on_resume",
    "flat_settings",
    "gradient_accumulation_steps",
    "learned_settings",
    "load_config",
    "override_config",
    "resolve_deepspeed_config",
    "samples_before",
    "steps_of_run",
    "validate_config",
]
