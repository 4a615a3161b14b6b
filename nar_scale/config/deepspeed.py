"""The DeepSpeed configuration that a `Config` means, written out in full."""

from __future__ import annotations

import copy
from typing import Any

from nar_scale.config.batch_sizes import gradient_accumulation_steps
from nar_scale.config.deepspeed_keys import check_raw_settings
from nar_scale.config.schema import Config
from nar_scale.errors import ConfigError

_BUCKET = 5 * 10**8  # elements that are reduced or gathered at a time
_PREFETCH_BUCKET = 5 * 10**7
_SUB_GROUP = 10**9
_LIVE_PARAMETERS = 10**9
_PERSISTENT_PARAMETER = 10**5  # ZeRO 3 keeps smaller ones whole
_UNLIMITED = 2**62
_BATCH = "set training.global_batch_size and training.micro_batch_size instead"
_ELSEWHERE = {
    "train_batch_size": _BATCH,
    "train_micro_batch_size_per_gpu": _BATCH,
    "gradient_accumulation_steps": _BATCH,
    "bf16.enabled": "set training.precision instead",
    "fp16.enabled": "set training.precision instead",
    "data_types.param_dtype": "set training.precision instead",
    "zero_optimization.stage": "set training.zero_stage instead",
    "zero_optimization.round_robin_gradients": "checkpoints would take one weight for another; leave it out",
    "sequence_parallel_size": "set training.sequence_parallel_size instead",
    "data_parallel_size": "set training.sequence_parallel_size instead",
    "tensor_parallel": (
        "AutoTP would train query/key norms and token critics wrongly, and its split weights cannot be consolidated; "
        "use training.zero_stage 3 or training.sequence_parallel_size instead"
    ),
    "optimizer": "use the 'optimizer' section instead",
    "scheduler": "use the 'schedule' section instead",
    "managed_gradient_accumulation": "the trainer relies on it; leave it out",
    "gradient_allreduce_op": "losses are made for the mean over ranks; leave it out",
}


def resolve_deepspeed_config(config: Config, world_size: int) -> dict[str, Any]:
    """Every DeepSpeed setting that matters, explicit, for `world_size` ranks.

    The optimizer and the learning-rate schedule are ours and do not appear here. `config.deepspeed`
    is merged over the result and wins.

    Raises:
        ConfigError: the batch does not divide, a rank that is named is not there, or a raw setting is unknown, wrong or
            in contradiction to what the trainer relies on.
    """
    _check_ranks(config, world_size)
    resolved = _written_out(config, world_size)
    if config.deepspeed:
        _merge_raw(config, resolved)
    return resolved


def _check_ranks(config: Config, world_size: int) -> None:
    if world_size % config.zero.hpz_partition_size:
        raise ConfigError(
            f"zero.hpz_partition_size {config.zero.hpz_partition_size} does not divide {world_size} rank(s)"
        )
    beyond = [rank for rank in config.logging.profile_ranks if rank >= world_size]
    if beyond and config.logging.profile_steps is not None:
        raise ConfigError(f"logging.profile_ranks: there is no rank {beyond[0]} among {world_size}, counted from 0")
    for stage in config.training.batch_size_warmup:
        gradient_accumulation_steps(config, world_size, stage.from_step)


def _written_out(config: Config, world_size: int) -> dict[str, Any]:
    training = config.training
    return {
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
        "zero_optimization": _zero(config, world_size),
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
        "timers": {"throughput": {"enabled": False, "synchronized": False}},  # ours does not wait for the device
        "memory_breakdown": False,
        "dump_state": False,
        "disable_python_gc": False,
        "steps_per_print": 2**62,
    }


def _merge_raw(config: Config, resolved: dict[str, Any]) -> None:
    """Let the raw settings win, as far as they make sense."""
    _refuse_what_other_sections_say(config.deepspeed)
    _refuse_auto(config.deepspeed, "deepspeed")
    for key, value in config.deepspeed.items():
        _check_kind(key, resolved.get(key), value)
    _merge(resolved, config.deepspeed)
    check_raw_settings(config.deepspeed, resolved)
    _check_accumulation(config, resolved["data_types"]["grad_accum_dtype"])


def _refuse_what_other_sections_say(raw: dict[str, Any]) -> None:
    for name, remedy in _ELSEWHERE.items():
        *sections, key = name.split(".")
        section = raw.get(sections[0]) if sections else raw
        if isinstance(section, dict) and key in section:
            raise ConfigError(f"deepspeed.{name}: {remedy}")


def _check_kind(key: str, ours: Any, value: Any) -> None:
    """Refuse what DeepSpeed would take as it is, to fail over it later, in place of what is written out."""
    kinds = {dict: "a section, with keys of its own", bool: "true or false", int: "a number", float: "a number"}
    kind = type(ours)
    fits = (
        isinstance(value, (int, float)) and not isinstance(value, bool) if kind in (int, float) else type(value) is kind
    )
    if kind in kinds and not fits:
        raise ConfigError(f"deepspeed.{key}: expected {kinds[kind]}, got {value!r:.60}")


def _check_accumulation(config: Config, sums: Any) -> None:
    """Refuse to sum gradients in a type that DeepSpeed has no engine for, or at the cost of something asked for."""
    training = config.training
    beside = {"fp32": "bf16", "bf16": "fp32", "fp16": "fp32"}[training.precision]
    possible = [training.precision, *([beside] if training.zero_stage > 0 else [])]
    if training.zero_stage == 1 and training.master_weights == "bf16":
        possible.remove("fp32")  # which brings an optimizer with masters in float32, whatever is asked for
    if sums not in possible:
        raise ConfigError(
            f"deepspeed.data_types.grad_accum_dtype: with training.precision {training.precision}, master_weights "
            f"{training.master_weights} and zero_stage {training.zero_stage} it is {' or '.join(possible)}, not {sums}"
        )


def _precision(config: Config) -> dict[str, Any]:
    training = config.training
    bf16_masters = training.master_weights == "bf16"
    # sums over many micro-batches lose small contributions in bf16; at stage 1 that takes 4 bytes a parameter more
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


def _zero(config: Config, world_size: int) -> dict[str, Any]:
    stage, zero = config.training.zero_stage, config.zero
    settings: dict[str, Any] = {
        "stage": stage,
        # with nothing to communicate, stages 1 and 2 would only wait for the device after each backward pass
        "overlap_comm": stage == 3 or (stage > 0 and world_size > 1),
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
