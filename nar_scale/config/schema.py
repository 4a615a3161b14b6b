"""The sections of a YAML file, typed and validated: each by itself where it is described, all together here.

| section | keys and their meaning |
|---|---|
| `model`, `objective` | `nar_scale/config/model.py` |
| `data` | `nar_scale/config/data.py` |
| `optimizer`, `schedule`, `training`, `zero` | `nar_scale/config/training.py` |
| `checkpoint`, `logging`, `faults` | `nar_scale/config/operation.py` |

Every key has one meaning and one default; an unknown key is an error that names the nearest valid one. Whether a run
can start with a configuration is another matter, of `nar_scale/config/checks.py`.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field
from pydantic import model_validator as validator

from nar_scale.config.data import DataConfig
from nar_scale.config.model import ModelConfig, ObjectiveConfig
from nar_scale.config.operation import CheckpointConfig, FaultsConfig, LoggingConfig
from nar_scale.config.section import Section
from nar_scale.config.training import OptimizerConfig, ScheduleConfig, TrainingConfig, ZeroConfig


class Config(Section):
    """A whole run."""

    model: ModelConfig
    objective: ObjectiveConfig
    data: DataConfig
    optimizer: OptimizerConfig
    schedule: ScheduleConfig = ScheduleConfig()
    training: TrainingConfig
    zero: ZeroConfig = ZeroConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    logging: LoggingConfig = LoggingConfig()
    faults: FaultsConfig = FaultsConfig()
    deepspeed: dict[str, Any] = Field(default_factory=dict)
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
