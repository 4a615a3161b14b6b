"""What a valid configuration must fulfil besides, so that a run may start with it.

These checks are no validators of the sections: a configuration that was saved with a checkpoint stays readable when a
check is added, since the run it belongs to may go on with a corrected one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from nar_scale.config.batch_sizes import steps_of_run
from nar_scale.config.schema import Config
from nar_scale.errors import ConfigError


def check_run(config: Config) -> None:
    """Refuse to start a run with settings that contradict each other or mean nothing.

    Raises:
        ConfigError: all such settings, in one line.
    """
    checks = (_numbers, _stream, _lengths, _decoding, _logging, _profile, _faults, _zero)
    problems = [problem for check in checks for problem in check(config)]
    if problems:
        raise ConfigError("; ".join(problems))


def _numbers(config: Config) -> Iterator[str]:
    for name, number in _floats(config.model_dump(exclude={"deepspeed": True, "data": {"storage_options"}}), ""):
        if not math.isfinite(number):
            yield f"{name}: give a finite number, not {number}"
    if config.training.seed >= 2**63:
        yield f"training.seed {config.training.seed} is not below {2**63}"


def _floats(value: Any, name: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, float):
        yield name, value
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, tuple) else ()
    for key, each in inner:
        yield from _floats(each, f"{name}.{key}" if name else str(key))


def _stream(config: Config) -> Iterator[str]:
    peers = config.training.sequence_parallel_size
    for name, number in (("max_seq_len", config.model.max_seq_len), ("heads", config.model.heads)):
        if number % peers:
            yield f"model.{name} {number} is not a multiple of training.sequence_parallel_size {peers}"
    if config.training.batch_size_warmup and config.data.sequential:
        yield "training.batch_size_warmup needs an exact stream, not data.sequential"


def _lengths(config: Config) -> Iterator[str]:
    steps = steps_of_run(config)
    if config.schedule.warmup_steps >= steps:
        yield f"schedule.warmup_steps {config.schedule.warmup_steps} is not below training.steps {steps}"


def _decoding(config: Config) -> Iterator[str]:
    if "" in config.decoding.stop:
        yield "decoding.stop has an empty text, which would end every text at once"


def _logging(config: Config) -> Iterator[str]:
    shape, length = config.logging.image_shape, config.model.max_seq_len
    if shape is not None and config.objective.kind in ("autoregressive", "hybrid"):
        yield "logging.image_shape needs a model that fills in masks, whose samples have a fixed length"
    elif shape is not None and shape[0] * shape[1] != length:
        yield (
            f"logging.image_shape {shape[0]} x {shape[1]} has {shape[0] * shape[1]} pixels, but model.max_seq_len "
            f"is {length}"
        )
    of_sources = [source.validation for source in config.data.sources.values()] or [None]
    validation = [config.data.validation if pattern is None else pattern for pattern in of_sources]
    if config.logging.evaluate_every and not any(validation):
        yield "logging.evaluate_every needs validation shards, but data.validation is empty"


def _profile(config: Config) -> Iterator[str]:
    steps, logging = steps_of_run(config), config.logging
    first, last = logging.profile_steps or (None, None)
    for name, step in {"flops_step": logging.flops_step, "profile_steps": first}.items():
        if step is not None and step > steps:
            yield f"logging.{name}: step {step} is not one of the {steps} of the run"
    if first is not None and last is not None and first > last:
        yield f"logging.profile_steps {[first, last]}: give the first step before the last"
    if first is None and logging.profile_ranks != (0,):
        yield "logging.profile_ranks means nothing without profile_steps; give both or neither"


def _faults(config: Config) -> Iterator[str]:
    if config.faults.skip_spikes and not config.faults.spike_sigma:
        yield "faults.skip_spikes needs a spike_sigma above 0, to find any"


def _zero(config: Config) -> Iterator[str]:
    training, zero = config.training, config.zero
    needs_3 = {
        "offload_parameters": zero.offload_parameters != "none",
        "offload_optimizer nvme": zero.offload_optimizer == "nvme",
        "hpz_partition_size": zero.hpz_partition_size > 1,
        "quantized_weights": zero.quantized_weights,
        "quantized_gradients": zero.quantized_gradients,
    }
    for name, wanted in needs_3.items():
        if wanted and training.zero_stage != 3:
            yield f"zero.{name} needs training.zero_stage 3, not {training.zero_stage}"
    if zero.offload_optimizer != "none" and training.zero_stage == 0:
        yield "zero.offload_optimizer needs training.zero_stage 1, 2 or 3, not 0"
    if zero.offload_optimizer != "none" and training.master_weights == "bf16":
        yield "training.master_weights bf16 and zero.offload_optimizer exclude each other"
    if config.optimizer.kind == "muon" and zero.offload_optimizer == "nvme":
        yield "optimizer.kind muon and zero.offload_optimizer nvme exclude each other; use cpu"
