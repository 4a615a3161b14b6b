"""The sections of a YAML file, typed and validated: each by itself where it is described, all together here.

| section | keys and their meaning |
|---|---|
| `model`, `objective` | `nar_scale/config/model.py` |
| `data` | `nar_scale/config/data.py` |
| `optimizer`, `schedule`, `training`, `zero` | `nar_scale/config/training.py` |
| `checkpoint`, `logging`, `faults` | `nar_scale/config/operation.py` |

Every key has one meaning and one default; an unknown key is an error that names the nearest valid one.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field
from pydantic import model_validator as validator

from nar_scale.config.data import DataConfig
from nar_scale.config.length import steps_of_run
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
    def _sequences_divide(self) -> Config:
        peers = self.training.sequence_parallel_size
        for name, number in (("max_seq_len", self.model.max_seq_len), ("heads", self.model.heads)):
            if number % peers:
                raise ValueError(f"model.{name} {number} is not a multiple of training.sequence_parallel_size {peers}")
        return self

    @validator(mode="after")
    def _classes_fit(self) -> Config:
        if (self.objective.num_classes is None) != (self.data.class_field is None):
            raise ValueError("objective.num_classes and data.class_field are needed together: give both or neither")
        return self

    @validator(mode="after")
    def _image_fits(self) -> Config:
        shape, length = self.logging.image_shape, self.model.max_seq_len
        if shape is not None and self.objective.kind == "autoregressive":
            raise ValueError("logging.image_shape needs a non-autoregressive model, whose samples have a fixed length")
        if shape is not None and shape[0] * shape[1] != length:
            raise ValueError(
                f"logging.image_shape {shape[0]} x {shape[1]} has {shape[0] * shape[1]} pixels, but model.max_seq_len "
                f"is {length}"
            )
        return self

    @validator(mode="after")
    def _warmup_fits(self) -> Config:
        steps = steps_of_run(self)
        if self.schedule.warmup_steps >= steps:
            raise ValueError(f"schedule.warmup_steps {self.schedule.warmup_steps} is not below training.steps {steps}")
        if self.training.batch_size_warmup and self.data.sequential:
            raise ValueError("training.batch_size_warmup needs an exact stream, not data.sequential")
        return self

    @validator(mode="after")
    def _evaluation_fits(self) -> Config:
        of_sources = [source.validation for source in self.data.sources.values()] or [None]
        held_out = [self.data.validation if pattern is None else pattern for pattern in of_sources]
        if self.logging.evaluate_every and not any(held_out):
            raise ValueError("logging.evaluate_every needs held-out shards, but data.validation is empty")
        return self

    @validator(mode="after")
    def _profile_fits(self) -> Config:
        steps, logging = steps_of_run(self), self.logging
        first = {"flops_step": logging.flops_step, "profile_steps": (logging.profile_steps or (None,))[0]}
        for name, step in first.items():
            if step is not None and step > steps:
                raise ValueError(f"logging.{name}: step {step} is not one of the {steps} of the run")
        return self

    @validator(mode="after")
    def _offload_fits(self) -> Config:
        training, zero = self.training, self.zero
        needs_3 = {
            "offload_parameters": zero.offload_parameters != "none",
            "offload_optimizer nvme": zero.offload_optimizer == "nvme",
            "hpz_partition_size": zero.hpz_partition_size > 1,
            "quantized_weights": zero.quantized_weights,
            "quantized_gradients": zero.quantized_gradients,
        }
        for name, wanted in needs_3.items():
            if wanted and training.zero_stage != 3:
                raise ValueError(f"zero.{name} needs training.zero_stage 3, not {training.zero_stage}")
        if zero.offload_optimizer != "none" and training.zero_stage == 0:
            raise ValueError("zero.offload_optimizer needs training.zero_stage 1, 2 or 3, not 0")
        if zero.offload_optimizer != "none" and training.master_weights == "bf16":
            raise ValueError("training.master_weights bf16 and zero.offload_optimizer exclude each other")
        return self

    @validator(mode="after")
    def _muon_fits(self) -> Config:
        if self.optimizer.kind == "muon" and self.zero.offload_optimizer == "nvme":
            raise ValueError("optimizer.kind muon and zero.offload_optimizer nvme exclude each other; use cpu")
        return self
