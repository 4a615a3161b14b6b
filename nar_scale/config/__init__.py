"""The YAML file as typed, validated objects."""

from nar_scale.config.deepspeed import gradient_accumulation_steps, resolve_deepspeed_config
from nar_scale.config.load import dump_config, load_config, validate_config
from nar_scale.config.schema import (
    CheckpointConfig,
    Config,
    DataConfig,
    LoggingConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    ScheduleConfig,
    SourceConfig,
    TrainingConfig,
)

__all__ = [
    "CheckpointConfig",
    "Config",
    "DataConfig",
    "LoggingConfig",
    "ModelConfig",
    "ObjectiveConfig",
    "OptimizerConfig",
    "ScheduleConfig",
    "SourceConfig",
    "TrainingConfig",
    "dump_config",
    "gradient_accumulation_steps",
    "load_config",
    "resolve_deepspeed_config",
    "validate_config",
]
