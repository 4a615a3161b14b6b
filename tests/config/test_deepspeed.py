import copy
import importlib
from enum import Enum
from pathlib import Path

import pytest
import torch

from nar_scale.config import gradient_accumulation_steps, resolve_deepspeed_config
from nar_scale.errors import ConfigError
from tests.errors import refused

from .helpers import config_with


@pytest.mark.parametrize(("world_size", "steps"), [(1, 4), (2, 2), (4, 1)])
def test_accumulation_follows_from_the_batch(world_size, steps):
    assert gradient_accumulation_steps(config_with(), world_size) == steps
    resolved = resolve_deepspeed_config(config_with(), world_size)
    assert resolved["train_batch_size"] == 8
    assert resolved["train_micro_batch_size_per_gpu"] == 2
    assert resolved["gradient_accumulation_steps"] == steps


@pytest.mark.parametrize(("world_size", "nearest"), [(3, "6 or 12"), (8, "16"), (5, "10")])
def test_a_batch_that_does_not_divide_names_the_nearest(world_size, nearest):
    with refused(ConfigError, "training.global_batch_size", 8, "training.micro_batch_size", 2, world_size, nearest):
        resolve_deepspeed_config(config_with(), world_size)


PRECISIONS = {
    "fp32": {},
    "bf16": {"training.precision": "bf16"},
    "fp16": {"training.precision": "fp16", "training.initial_loss_scale": 2**12, "training.loss_scale_window": 500},
    "bf16 masters": {"training.precision": "bf16", "training.master_weights": "bf16"},
}
EVERYTHING = {
    "training.zero_stage": 3,
    "zero.offload_optimizer": "nvme",
    "zero.offload_parameters": "nvme",
    "zero.offload_directory": "/scratch",
    "zero.quantized_weights": True,
    "zero.quantized_gradients": True,
}
CASES = [
    {"training.precision": "fp32", **precision, "training.zero_stage": stage}
    for name, precision in PRECISIONS.items()
    for stage in range(4)
    if stage or name != "bf16 masters"
]


@pytest.mark.parametrize("changes", [*CASES, EVERYTHING], ids=str)
def test_deepspeed_reads_what_was_written_out(changes):
    """Each setting by name: what DeepSpeed does not know, or reads otherwise, would be left at a default of its own."""
    from deepspeed.runtime.config import DeepSpeedConfig

    resolved = resolve_deepspeed_config(config_with(**changes), 1)
    parsed = DeepSpeedConfig(copy.deepcopy(resolved))
    types = resolved.pop("data_types")
    assert parsed.grad_accum_dtype == types.pop("grad_accum_dtype")
    assert not types
    assert parsed.aio_config == resolved.pop("aio")
    assert parsed.timers_config.model_dump() == resolved.pop("timers")["throughput"]
    assert parsed.torch_autocast_enabled is resolved.pop("torch_autocast")["enabled"]
    for name, section in {
        "bf16": parsed.bfloat16_config,
        "fp16": parsed.float16_config,
        "zero_optimization": parsed.zero_config,
        "activation_checkpointing": parsed.activation_checkpointing_config,
    }.items():
        check_section(section, resolved.pop(name))
    for name in ("communication_data_type", "seq_parallel_communication_data_type"):
        resolved[name] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[resolved[name]]
    check_section(parsed, resolved)


@pytest.mark.parametrize(("world_size", "expected"), [(1, [False, False, False, True]), (2, [False, True, True, True])])
def test_reductions_overlap_where_there_is_something_to_reduce(world_size, expected):
    resolved = [
        resolve_deepspeed_config(config_with(**{"training.zero_stage": stage}), world_size) for stage in range(4)
    ]
    assert [each["zero_optimization"]["overlap_comm"] for each in resolved] == expected


def check_section(parsed, written):
    for name, value in written.items():
        field = name if hasattr(parsed, name) else name.removeprefix("stage3_")
        if isinstance(value, dict):
            check_section(getattr(parsed, field), value)
        else:
            found = getattr(parsed, field)
            assert value == (str(found) if isinstance(found, Path) else found), name


def test_deepspeed_has_no_zero_setting_but_these():
    """A new release that brings another one fails here, to be thought about."""
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    written = resolve_deepspeed_config(config_with(**EVERYTHING), 1)["zero_optimization"]
    deprecated = {"cpu_offload", "cpu_offload_param", "cpu_offload_use_pin_memory"}
    not_ours = {
        "zenflow",
        "leaf_module",
        "log_trace_cache_warnings",
        "enable_sanity_checks",
        "pipeline_loading_checkpoint",
    }
    muons = {"save_muon_momentum_buffer_in_memory"}  # of DeepSpeed's Muon, not of ours
    fields = {field.alias or name for name, field in DeepSpeedZeroConfig.model_fields.items() if name not in deprecated}
    assert fields - set(written) - not_ours - muons == {"stage3_gather_fp16_weights_on_model_save"}


def test_ranks_to_trace_are_there():
    config = config_with(**{"logging.profile_ranks": [0, 3, 4], "logging.profile_steps": [1, 2]})
    with refused(ConfigError, "logging.profile_ranks", 3, 2):
        resolve_deepspeed_config(config, 2)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_precision_and_stage(stage, precision):
    config = config_with(**{"training.zero_stage": stage, "training.precision": precision})
    resolved = resolve_deepspeed_config(config, 2)
    assert resolved["zero_optimization"]["stage"] == stage
    assert resolved["bf16"]["enabled"] is (precision == "bf16")
    assert resolved["bf16"]["check_grad_overflow"]
    assert resolved["fp16"]["enabled"] is (precision == "fp16")
    assert resolved["gradient_clipping"] == 1.0
    assert not {"optimizer", "scheduler"} & set(resolved)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (
            {"zero.offload_optimizer": "cpu", "training.zero_stage": 0},
            ["zero.offload_optimizer", "training.zero_stage 1, 2 or 3", 0],
        ),
        ({"zero.offload_optimizer": "nvme"}, ["nvme", "offload_directory"]),
        ({"zero.offload_directory": "x"}, ["nvme", "offload_directory"]),
        (
            {"zero.offload_optimizer": "nvme", "zero.offload_directory": "x"},
            ["zero.offload_optimizer nvme", "training.zero_stage 3", 2],
        ),
        ({"zero.offload_parameters": "cpu"}, ["zero.offload_parameters", "training.zero_stage 3", 2]),
        ({"zero.hpz_partition_size": 2}, ["zero.hpz_partition_size", "training.zero_stage 3"]),
        ({"zero.quantized_weights": True}, ["zero.quantized_weights", "training.zero_stage 3"]),
        ({"zero.quantized_gradients": True}, ["zero.quantized_gradients", "training.zero_stage 3"]),
        (
            {"training.master_weights": "bf16", "training.zero_stage": 0},
            ["master_weights bf16", "precision bf16", "zero_stage 1, 2 or 3"],
        ),
        (
            {"training.master_weights": "bf16", "training.precision": "fp32"},
            ["master_weights bf16", "precision bf16", "zero_stage 1, 2 or 3"],
        ),
        (
            {"training.master_weights": "bf16", "zero.offload_optimizer": "cpu"},
            ["training.master_weights bf16", "zero.offload_optimizer"],
        ),
        ({"training.initial_loss_scale": 1000}, ["initial_loss_scale", 1000]),
    ],
)
def test_what_does_not_go_together_is_refused(changes, named):
    with refused(ConfigError, *named):
        config_with(**changes)


def test_raw_settings_win():
    config = config_with(
        **{
            "deepspeed.zero_optimization.overlap_comm": False,
            "deepspeed.zero_optimization.offload_optimizer": {"device": "cpu"},
            "deepspeed.fp16.loss_scale": 128,
            "deepspeed.comms_logger": {"enabled": True},
        }
    )
    resolved = resolve_deepspeed_config(config, 1)
    zero = resolved["zero_optimization"]
    assert (zero["stage"], zero["overlap_comm"], zero["offload_optimizer"]) == (2, False, {"device": "cpu"})
    assert (resolved["fp16"]["enabled"], resolved["fp16"]["loss_scale"]) == (False, 128)
    assert resolved["comms_logger"] == {"enabled": True}
    zero["offload_optimizer"]["device"] = "nvme"
    assert config.deepspeed["zero_optimization"]["offload_optimizer"] == {"device": "cpu"}


@pytest.mark.parametrize(
    ("key", "remedy"),
    [
        ("train_batch_size", ["training.global_batch_size", "training.micro_batch_size"]),
        ("train_micro_batch_size_per_gpu", ["training.global_batch_size", "training.micro_batch_size"]),
        ("gradient_accumulation_steps", ["training.global_batch_size", "training.micro_batch_size"]),
        ("optimizer", ["'optimizer' section"]),
        ("scheduler", ["'schedule' section"]),
        ("bf16.enabled", ["training.precision"]),
        ("data_types.param_dtype", ["training.precision"]),
        ("zero_optimization.stage", ["training.zero_stage"]),
        ("managed_gradient_accumulation", ["leave it out"]),
        ("gradient_allreduce_op", ["leave it out"]),
    ],
)
def test_what_other_sections_say_is_refused(key, remedy):
    with refused(ConfigError, f"deepspeed.{key}", *remedy):
        resolve_deepspeed_config(config_with(**{f"deepspeed.{key}": 4}), 1)


MODELS = {
    "zero_optimization": "runtime.zero.config.DeepSpeedZeroConfig",
    "zero_optimization.offload_optimizer": "runtime.zero.offload_config.DeepSpeedZeroOffloadOptimizerConfig",
    "zero_optimization.offload_param": "runtime.zero.offload_config.DeepSpeedZeroOffloadParamConfig",
    "bf16": "runtime.precision_config.DeepSpeedBF16Config",
    "fp16": "runtime.precision_config.DeepSpeedFP16Config",
    "comms_logger": "comm.config.CommsLoggerConfig",
    "tensorboard": "monitor.config.TensorBoardConfig",
    "wandb": "monitor.config.WandbConfig",
    "csv_monitor": "monitor.config.CSVConfig",
    "comet": "monitor.config.CometConfig",
    "compile": "compile.config.CompileConfig",
    "hybrid_engine": "runtime.config.HybridEngineConfig",
    "timers.throughput": "utils.config.DeepSpeedThroughputTimerConfig",
}
OURS = ("zero_optimization.stage", "zero_optimization.round_robin_gradients", "bf16.enabled", "fp16.enabled")
CONSTANTS = {
    "flops_profiler": ("profiling.constants", "FLOPS_PROFILER_", "FLOPS_PROFILER_FORMAT"),
    "activation_checkpointing": ("runtime.activation_checkpointing.config", "ACT_CHKPT_", "ACT_CHKPT_DEFAULT"),
    "aio": ("runtime.swap_tensor.constants", "AIO_", "AIO_FORMAT"),
    "autotuning": ("autotuning.constants", "AUTOTUNING_", "AUTOTUNING_FORMAT"),
}
SINGLE = {
    "prescale_gradients": True,
    "gradient_predivide_factor": 2.0,
    "communication_data_type": "fp32",
    "steps_per_print": 10,
    "vocabulary_size": 256,
    "wall_clock_breakdown": True,
    "memory_breakdown": True,
    "dataloader_drop_last": True,
    "log_level": "info",
    "use_data_before_expert_parallelism": True,
    "disable_allgather": True,
    "dump_state": True,
    "checkpoint": {"tag_validation": "Ignore", "load_universal": False, "parallel_write": {"pipeline_stage": True}},
    "data_types": {"grad_accum_dtype": "fp32", "buffer_dtype": "fp32", "keep_in_fp32_modules": ["a"]},
    "torch_autocast": {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": ["torch.nn.Linear"]},
    "pipeline": {"stages": 1, "anything": 2},
    "data_efficiency": {"enabled": False, "what_is_off": "is not read"},
}


def known_to_deepspeed():
    """Every key that DeepSpeed has, by its models and constants, with a value that it takes."""
    for section, path in MODELS.items():
        module, name = path.rsplit(".", 1)
        for field_name, field in getattr(importlib.import_module(f"deepspeed.{module}"), name).model_fields.items():
            key = f"{section}.{field.alias or field_name}"
            deprecated = (field.json_schema_extra or {}).get("deprecated")  # which must not stand beside their heirs
            if not deprecated and key not in OURS:
                default = field.get_default(call_default_factory=True)
                yield key, default.value if isinstance(default, Enum) else default
    for section, (module, prefix, *others) in CONSTANTS.items():
        constants = vars(importlib.import_module(f"deepspeed.{module}"))
        for name, key in constants.items():
            value = constants.get(f"{name}_DEFAULT")
            if name.startswith(prefix) and f"{name}_DEFAULT" in constants and name not in others:
                yield f"{section}.{key}", value
    yield from SINGLE.items()


def test_nothing_that_deepspeed_knows_is_refused():
    cases = dict(known_to_deepspeed())
    assert len(cases) > 150
    for key, value in cases.items():
        resolve_deepspeed_config(config_with(**{f"deepspeed.{key}": value}), 1)


@pytest.mark.parametrize(
    ("key", "value", "unknown", "nearest"),
    [
        ("gradient_cliping", 0.5, "gradient_cliping", "gradient_clipping"),
        ("zero_optimization.overlap_com", True, "zero_optimization.overlap_com", "zero_optimization.overlap_comm"),
        (
            "zero_optimization.offload_optimizer",
            {"device": "cpu", "pin_memry": True},
            "zero_optimization.offload_optimizer.pin_memry",
            "zero_optimization.offload_optimizer.pin_memory",
        ),
        (
            "zero_optimization.leaf_module",
            {"clases": []},
            "zero_optimization.leaf_module.clases",
            "zero_optimization.leaf_module.classes",
        ),
        (
            "activation_checkpointing.profil",
            True,
            "activation_checkpointing.profil",
            "activation_checkpointing.profile",
        ),
        ("torch_autocast.enabeld", True, "torch_autocast.enabeld", "torch_autocast.enabled"),
        ("timers.throughputs", {}, "timers.throughputs", "timers.throughput"),
        ("timers.throughput.enable", False, "timers.throughput.enable", "timers.throughput.enabled"),
        ("bfloat16", {"immediate_grad_update": True}, "bfloat16", "bf16"),
        (
            "checkpoint.writer",
            {"type": "FAST", "io_bufer_size": 3},
            "checkpoint.writer.io_bufer_size",
            "checkpoint.writer.io_buffer_size",
        ),
    ],
)
def test_a_key_that_deepspeed_does_not_know_is_named_with_the_nearest(key, value, unknown, nearest):
    with refused(ConfigError, f"'deepspeed.{unknown}'", f"'deepspeed.{nearest}'"):
        resolve_deepspeed_config(config_with(**{f"deepspeed.{key}": value}), 1)


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("comms_logger.xyzzy", 1, ["'deepspeed.comms_logger.xyzzy'", "https://www.deepspeed.ai/docs/config-json"]),
        ("zero_optimization.reduce_bucket_size", -1, ["deepspeed.zero_optimization.reduce_bucket_size", "-1"]),
        ("fp16.loss_scale", "big", ["deepspeed.fp16.loss_scale", "'big'"]),
        ("communication_data_type", "fp8", ["deepspeed", "communication_data_type"]),
        ("amp", {"enabled": True}, ["deepspeed", "AMP"]),
        ("zero_optimization", 2, ["deepspeed.zero_optimization", "section", 2]),
        ("bf16", None, ["deepspeed.bf16", "section", "None"]),
        ("gradient_clipping", "1", ["deepspeed.gradient_clipping", "number", "'1'"]),
        ("prescale_gradients", "no", ["deepspeed.prescale_gradients", "true or false", "'no'"]),
    ],
)
def test_a_value_that_deepspeed_does_not_take_is_named(key, value, named):
    with refused(ConfigError, *named):
        resolve_deepspeed_config(config_with(**{f"deepspeed.{key}": value}), 1)


def test_a_deprecated_key_is_refused_only_beside_the_one_that_replaces_it():
    given = {"deepspeed.zero_optimization.cpu_offload": True}
    assert "offload_optimizer" not in resolve_deepspeed_config(config_with(**given), 1)["zero_optimization"]
    with refused(ConfigError, "'cpu_offload'", "'offload_optimizer'"):
        resolve_deepspeed_config(config_with(**given, **{"zero.offload_optimizer": "cpu"}), 1)


@pytest.mark.parametrize(
    ("sections", "name"),
    [(("comms_logger",), "deepspeed.comms_logger.enabled"), (("comms_logger", "hybrid_engine"), "deepspeed.enabled")],
)
def test_of_sections_with_the_same_key_the_one_with_the_wrong_value_is_named_if_it_is_one(sections, name):
    raw = {"flops_profiler": {"enabled": True}, **{section: {"enabled": "maybe"} for section in sections}}
    with refused(ConfigError, name, "'maybe'"):
        resolve_deepspeed_config(config_with(deepspeed=raw), 1)


@pytest.mark.parametrize(
    ("stage", "precision", "masters", "sums", "possible"),
    [
        (0, "bf16", "fp32", "fp32", "bf16"),
        (0, "fp32", "fp32", "bf16", "fp32"),
        (1, "bf16", "bf16", "fp32", "bf16"),
        (1, "bf16", "fp32", "fp16", "bf16 or fp32"),
        (2, "fp16", "fp32", "bf16", "fp16 or fp32"),
        (3, "bf16", "fp32", "fp8", "bf16 or fp32"),
        (1, "bf16", "fp32", "fp32", None),
        (2, "bf16", "bf16", "fp32", None),
        (3, "fp32", "fp32", "bf16", None),
    ],
)
def test_what_gradients_can_be_summed_in(stage, precision, masters, sums, possible):
    changes = {"training.zero_stage": stage, "training.precision": precision, "training.master_weights": masters}
    config = config_with(**changes, **{"deepspeed.data_types.grad_accum_dtype": sums})
    if possible is None:
        assert resolve_deepspeed_config(config, 1)["data_types"] == {"grad_accum_dtype": sums}
        return
    with refused(
        ConfigError, "deepspeed.data_types.grad_accum_dtype", f"zero_stage {stage}", f"{possible}, not {sums}"
    ):
        resolve_deepspeed_config(config, 1)
