"""The YAML file as typed, validated objects."""

from nar_scale.config.checks import check_run
from nar_scale.config.data import DataConfig, SourceConfig
from nar_scale.config.deepspeed import gradient_accumulation_steps, resolve_deepspeed_config
from nar_scale.config.length import batch_size_at, first_step_from, samples_before, steps_of_run
from nar_scale.config.load import dump_config, load_config, validate_config
from nar_scale.config.model import ModelConfig, ObjectiveConfig
from nar_scale.config.operation import CheckpointConfig, FaultsConfig, LoggingConfig
from nar_scale.config.schema import Config
from nar_scale.config.training import BatchSizeStage, OptimizerConfig, ScheduleConfig, TrainingConfig, ZeroConfig

__all__ = [
    "BatchSizeStage",
    "CheckpointConfig",
    "Config",
    "DataConfig",
    "FaultsConfig",
    "LoggingConfig",
    "ModelConfig",
    "ObjectiveConfig",
    "OptimizerConfig",
    "ScheduleConfig",
    "SourceConfig",
    "TrainingConfig",
    "ZeroConfig",
    "batch_size_at",
    "check_run",
    "dump_config",
    "first_step_from",
    "gradient_accumulation_steps",
    "load_config",
    "resolve_deepspeed_config",
    "samples_before",
    "steps_of_run",
    "validate_config",
]
