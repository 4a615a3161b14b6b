"""The DeepSpeed configuration that a `Config` means, written out in full."""

from __future__ import annotations

import copy
from typing import Any

from nar_scale.config.length import batch_size_at
from nar_scale.config.schema import Config
from nar_scale.errors import ConfigError

_BUCKET = 5 * 10**8  # elements that are reduced or gathered at a time
_PREFETCH_BUCKET = 5 * 10**7
_SUB_GROUP = 10**9
_LIVE_PARAMETERS = 10**9
_PERSISTENT_PARAMETER = 10**5  # ZeRO 3 keeps smaller ones whole
_UNLIMITED = 2**62


def gradient_accumulation_steps(config: Config, world_size: int, step: int | None = None) -> int:
    """Micro-batches that each of `world_size` ranks works through in one optimizer step.

    Args:
        step: which one, where the batch size is warmed up; the last if not given.

    Raises:
        ConfigError: the global batch does not divide evenly; the nearest sizes that do are named.
    """
    training = config.training
    peers = training.sequence_parallel_size
    if world_size % peers:
        raise ConfigError(
            f"training.sequence_parallel_size {peers} does not divide {world_size} rank(s); start a multiple of {peers}"
        )
    size = training.global_batch_size if step is None else batch_size_at(training, step)
    unit = training.micro_batch_size * (world_size // peers)
    if size % unit:
        below = size // unit * unit
        ranks = f"{world_size} rank(s)" if peers == 1 else f"{world_size // peers} group(s) of {peers} ranks"
        nearest = " or ".join(str(size) for size in (below, below + unit) if size)
        name = "global_batch_size" if step is None else f"batch_size_warmup from step {step} on:"
        raise ConfigError(
            f"training.{name} {size} does not divide into micro-batches of "
            f"{training.micro_batch_size} on {ranks}; use {nearest}, or change training.micro_batch_size"
        )
    return size // unit


def resolve_deepspeed_config(config: Config, world_size: int) -> dict[str, Any]:
    """Every DeepSpeed setting that matters, explicit, for `world_size` ranks.

    The optimizer and the learning-rate schedule are ours and do not appear here. `config.deepspeed`
    is merged over the result and wins.

    Raises:
        ConfigError: the batch does not divide, or a raw setting contradicts what the trainer relies on.
    """
    training = config.training
    if world_size % config.zero.hpz_partition_size:
        raise ConfigError(
            f"zero.hpz_partition_size {config.zero.hpz_partition_size} does not divide {world_size} rank(s)"
        )
    for stage in training.batch_size_warmup:
        gradient_accumulation_steps(config, world_size, stage.from_step)
    resolved: dict[str, Any] = {
        # ranks that share sequences look to DeepSpeed like ranks with sequences of their own
        "train_batch_size": training.global_batch_size * training.sequence_parallel_size,
        "train_micro_batch_size_per_gpu": training.micro_batch_size,
        "gradient_accumulation_steps": gradient_accumulation_steps(config, world_size),
        "managed_gradient_accumulation": True,
        "gradient_clipping": config.optimizer.gradient_clipping,
        **_precision(config),
        "communication_data_type": "fp32" if training.precision == "fp32" else training.precision,
        "seq_parallel_communication_data_type": "fp32",
        "prescale_gradients": False,
        "gradient_predivide_factor": 1.0,
        "gradient_allreduce_op": "mean",
        "zero_optimization": _zero(config),
        "aio": {
            "block_size": 2**20,
            "queue_depth": 8,
            "intra_op_parallelism": 1,
            "single_submit": False,
            "overlap_events": True,
            "use_gds": False,
        },
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "disable_allgather": False,
        # ours are set in the model section, as `activation_checkpointing`
        "activation_checkpointing": {
            "partition_activations": False,
            "contiguous_memory_optimization": False,
            "cpu_checkpointing": False,
            "number_checkpoints": None,
            "synchronize_checkpoint_boundary": False,
            "profile": False,
        },
        "wall_clock_breakdown": False,
        "memory_breakdown": False,
        "dump_state": False,
        "disable_python_gc": False,
        "steps_per_print": 2**62,
    }
    _merge(resolved, config.deepspeed)
    _refuse_auto(config.deepspeed, "deepspeed")
    for key in ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"):
        if key in config.deepspeed:
            raise ConfigError(f"deepspeed.{key}: set training.global_batch_size and training.micro_batch_size instead")
    for key in ("bf16", "fp16"):
        if "enabled" in config.deepspeed.get(key, {}):
            raise ConfigError(f"deepspeed.{key}.enabled: set training.precision instead")
    if "stage" in config.deepspeed.get("zero_optimization", {}):
        raise ConfigError("deepspeed.zero_optimization.stage: set training.zero_stage instead")
    for key in ("sequence_parallel_size", "data_parallel_size"):
        if key in config.deepspeed:
            raise ConfigError(f"deepspeed.{key}: set training.sequence_parallel_size instead")
    if "tensor_parallel" in config.deepspeed:
        raise ConfigError(
            "deepspeed.tensor_parallel: AutoTP would train query/key norms and token critics wrongly, and its split "
            "weights cannot be consolidated; use training.zero_stage 3 or training.sequence_parallel_size instead"
        )
    for key in ("optimizer", "scheduler"):
        if key in config.deepspeed:
            raise ConfigError(f"deepspeed.{key}: use the '{key.replace('scheduler', 'schedule')}' section instead")
    return resolved


def _precision(config: Config) -> dict[str, Any]:
    training = config.training
    bf16_masters = training.master_weights == "bf16"
    # sums over many micro-batches lose small contributions in bf16; stages 0 and 1 cannot do otherwise
    widened = training.precision == "bf16" and training.zero_stage >= 2 and not bf16_masters
    return {
        "bf16": {
            "enabled": training.precision == "bf16",
            "immediate_grad_update": False,
            "check_grad_overflow": True,  # a step without a finite gradient is skipped
            "bf16_master_weights_and_grads": bf16_masters,
            "bf16_optimizer_states": bf16_masters,
        },
        "fp16": {
            "enabled": training.precision == "fp16",
            "auto_cast": False,
            "loss_scale": 0,  # dynamic
            "initial_scale_power": training.initial_loss_scale.bit_length() - 1,
            "loss_scale_window": training.loss_scale_window,
            "hysteresis": 2,
            "consecutive_hysteresis": False,
            "min_loss_scale": 1,
            "fp16_master_weights_and_grads": False,
        },
        "torch_autocast": {"enabled": False},
        "data_types": {"grad_accum_dtype": "fp32" if widened else training.precision},
    }


def _zero(config: Config) -> dict[str, Any]:
    stage, zero = config.training.zero_stage, config.zero
    settings: dict[str, Any] = {
        "stage": stage,
        "overlap_comm": stage > 0,
        "contiguous_gradients": True,
        "reduce_scatter": True,
        "reduce_bucket_size": _BUCKET,
        "use_multi_rank_bucket_allreduce": True,
        "allgather_partitions": True,
        "allgather_bucket_size": _BUCKET,
        "compute_grad_norm": True,
        "load_from_fp32_weights": True,
        "ignore_unused_parameters": True,
        "round_robin_gradients": False,
        "parameter_alignment": False,
        "legacy_stage1": False,
        "elastic_checkpoint": False,
        "sub_group_size": _SUB_GROUP,
        "stage3_prefetch_bucket_size": _PREFETCH_BUCKET,
        "stage3_param_persistence_threshold": _PERSISTENT_PARAMETER,
        "stage3_model_persistence_threshold": _UNLIMITED,
        "stage3_max_live_parameters": _LIVE_PARAMETERS,
        "stage3_max_reuse_distance": _LIVE_PARAMETERS,
        "stage3_gather_16bit_weights_on_model_save": False,
        "stage3_module_granularity_threshold": 0,
        "stage3_use_all_reduce_for_fetch_params": False,
        "stage3_allgather_sequential": False,
        "memory_efficient_linear": False,
        "override_module_apply": True,
        "zero_hpz_partition_size": zero.hpz_partition_size,
        "zero_quantized_weights": zero.quantized_weights,
        "zero_quantized_nontrainable_weights": False,
        "zero_quantized_gradients": zero.quantized_gradients,
        "offload_optimizer": None,
        "offload_param": None,
    }
    if zero.offload_optimizer != "none":
        settings["offload_optimizer"] = {
            "device": zero.offload_optimizer,
            "nvme_path": zero.offload_directory if zero.offload_optimizer == "nvme" else None,
            "pin_memory": True,
            "buffer_count": 5,  # weights, gradients, two moments and their average
            "pipeline_read": False,
            "pipeline_write": False,
            "fast_init": False,
            "ratio": 1.0,
            "super_offload": False,
        }
    if zero.offload_parameters != "none":
        settings["offload_param"] = {
            "device": zero.offload_parameters,
            "nvme_path": zero.offload_directory if zero.offload_parameters == "nvme" else None,
            "pin_memory": True,
            "buffer_count": 5,
            "buffer_size": 10**8,
            "max_in_cpu": 10**9,
        }
    return settings


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
