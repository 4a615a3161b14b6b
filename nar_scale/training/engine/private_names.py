"""The names of DeepSpeed without a promise to stay that this package uses, with the version they were checked against.

Each entry is a class or module, and its attributes: names with a leading underscore, and the tensors, groups and
settings of optimizers and engines that no documentation mentions. `tests/training/test_private_names.py` fails with
those that an installed version lacks, and with private names in the code that are not listed.
"""

from __future__ import annotations

DEEPSPEED_VERSION = "0.19.8"

_STAGE_1_AND_2 = "deepspeed.runtime.zero.stage_1_and_2.DeepSpeedZeroOptimizer"
_STAGE_3 = "deepspeed.runtime.zero.stage3.DeepSpeedZeroOptimizer_Stage3"

DEEPSPEED: dict[str, tuple[str, ...]] = {
    "deepspeed.ops": ("__compatible_ops__",),
    "deepspeed.runtime.engine.DeepSpeedEngine": (
        "optimizer",
        "dp_world_size",
        "fp16_enabled",
        "set_gradient_accumulation_boundary",
        "zero_optimization_stage",
        "was_step_applied",
    ),
    _STAGE_1_AND_2: (
        "optimizer",
        "bit16_groups",
        "single_partition_of_fp32_groups",
        "real_dp_process_group",
        "gradient_accumulation_steps",
        "update_lp_params",
        "loss_scaler",
    ),
    _STAGE_3: (
        "optimizer",
        "fp16_groups",
        "fp32_partitioned_groups_flat",
        "grad_position",
        "get_param_id",
        "dp_process_group",
        "gradient_accumulation_steps",
        "loss_scaler",
        "_swappable_optimizer_subgroup",
        "_optimizer_states_and_gradient_swap_in",
        "_optimizer_states_and_gradient_swap_out",
        "_get_param_partition_rank",
        "_partition_all_parameters",
        "_reassign_or_swap_out_partitioned_parameters",
        "_post_step",
    ),
    "deepspeed.runtime.bf16_optimizer.BF16_Optimizer": (
        "optimizer",
        "bf16_groups",
        "fp32_groups_flat_partition",
        "real_dp_process_group",
        "update_lp_params",
    ),
    "deepspeed.runtime.fp16.unfused_optimizer.FP16_UnfusedOptimizer": (
        "optimizer",
        "fp16_groups",
        "fp32_groups",
        "loss_scale_config",
    ),
    "deepspeed.runtime.fp16.loss_scaler.LossScaleConfig": ("cur_scale", "min_loss_scale", "dynamic_loss_scale"),
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler": (
        "cur_scale",
        "min_scale",
        "cur_iter",
        "last_overflow_iter",
        "cur_hysteresis",
        "raise_error_at_min_scale",
    ),
    "deepspeed.runtime.zero.partition_parameters": ("ds_tensor", "ds_numel", "ds_shape"),
    "deepspeed.utils.mixed_precision_linkage": ("_hp_mapping",),
    "deepspeed.utils.tensor_fragment.tensor_fragment": ("lp_fragment_address", "hp_fragment_address"),
    "deepspeed.runtime.bf16_optimizer": ("see_memory_usage",),
}
"""By dotted name of a class or module, the attributes of it, of its instances, or that it sets on parameters."""
