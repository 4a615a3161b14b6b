"""The DeepSpeed configuration that a `Config` means, written out in full."""

from __future__ import annotations

import copy
from typing import Any

from nar_scale.config.schema import Config
from nar_scale.errors import ConfigError


def gradient_accumulation_steps(config: Config, world_size: int) -> int:
    """Micro-batches that each of `world_size` ranks works through in one optimizer step.

    Raises:
        ConfigError: the global batch does not divide evenly; the nearest sizes that do are named.
    """
    training = config.training
    unit = training.micro_batch_size * world_size
    if training.global_batch_size % unit:
        below = training.global_batch_size // unit * unit
        nearest = " or ".join(str(size) for size in (below, below + unit) if size)
        raise ConfigError(
            f"training.global_batch_size {training.global_batch_size} does not divide into micro-batches of "
            f"{training.micro_batch_size} on {world_size} rank(s); use {nearest}, or change training.micro_batch_size"
        )
    return training.global_batch_size // unit


def resolve_deepspeed_config(config: Config, world_size: int) -> dict[str, Any]:
    """Every DeepSpeed setting that matters, explicit, for `world_size` ranks.

    The optimizer and the learning-rate schedule are ours and do not appear here. `config.deepspeed`
    is merged over the result and wins.

    Raises:
        ConfigError: the batch does not divide, or a raw setting contradicts what the trainer relies on.
    """
    training = config.training
    resolved: dict[str, Any] = {
        "train_batch_size": training.global_batch_size,
        "train_micro_batch_size_per_gpu": training.micro_batch_size,
        "gradient_accumulation_steps": gradient_accumulation_steps(config, world_size),
        "gradient_clipping": config.optimizer.gradient_clipping,
        "bf16": {"enabled": training.precision == "bf16"},
        "fp16": {"enabled": training.precision == "fp16"},
        "zero_optimization": {
            "stage": training.zero_stage,
            "overlap_comm": training.zero_stage > 0,
            "contiguous_gradients": True,
            "reduce_scatter": True,
        },
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "prescale_gradients": False,
        "wall_clock_breakdown": False,
        "steps_per_print": 2**62,
    }
    if training.precision == "bf16" and training.zero_stage >= 2:
        # sums over many micro-batches lose small contributions in bf16; stages 0 and 1 cannot do otherwise
        resolved["data_types"] = {"grad_accum_dtype": "fp32"}
    _merge(resolved, config.deepspeed)
    _refuse_auto(config.deepspeed, "deepspeed")
    for key in ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"):
        if key in config.deepspeed:
            raise ConfigError(f"deepspeed.{key}: set training.global_batch_size and training.micro_batch_size instead")
    for key in ("optimizer", "scheduler"):
        if key in config.deepspeed:
            raise ConfigError(f"deepspeed.{key}: use the '{key.replace('scheduler', 'schedule')}' section instead")
    return resolved


def _refuse_auto(value: Any, name: str) -> None:
    """DeepSpeed drops `auto` without a word, which leaves the setting at a default nobody chose."""
    if value == "auto":
        raise ConfigError(f"{name}: give a value; 'auto' means nothing here")
    if isinstance(value, dict):
        for key, inner in value.items():
            _refuse_auto(inner, f"{name}.{key}")


def _merge(base: dict[str, Any], over: dict[str, Any]) -> None:
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            _merge(base[key], value)
        else:
            base[key] = copy.deepcopy(value)
