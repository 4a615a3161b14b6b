import json

import pytest

from nar_scale.config import gradient_accumulation_steps, resolve_deepspeed_config
from nar_scale.errors import ConfigError

from .helpers import config_with


@pytest.mark.parametrize(("world_size", "steps"), [(1, 4), (2, 2), (4, 1)])
def test_accumulation_follows_from_the_batch(world_size, steps):
    assert gradient_accumulation_steps(config_with(), world_size) == steps
    resolved = resolve_deepspeed_config(config_with(), world_size)
    assert resolved["train_batch_size"] == 8
    assert resolved["train_micro_batch_size_per_gpu"] == 2
    assert resolved["gradient_accumulation_steps"] == steps


@pytest.mark.parametrize(("world_size", "nearest"), [(3, "use 6 or 12,"), (8, "use 16,"), (5, "use 10,")])
def test_a_batch_that_does_not_divide_names_the_nearest(world_size, nearest):
    with pytest.raises(ConfigError, match=f"global_batch_size 8 .*micro-batches of 2 on {world_size} rank.*{nearest}"):
        resolve_deepspeed_config(config_with(), world_size)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_every_setting_is_written_out(stage, precision):
    config = config_with(**{"training.zero_stage": stage, "training.precision": precision})
    resolved = resolve_deepspeed_config(config, 2)
    assert resolved["zero_optimization"]["stage"] == stage
    assert resolved["bf16"]["enabled"] is (precision == "bf16")
    assert resolved["fp16"]["enabled"] is (precision == "fp16")
    assert resolved["gradient_clipping"] == 1.0
    assert "auto" not in json.dumps(resolved)
    assert not {"optimizer", "scheduler"} & set(resolved)


def test_raw_settings_win():
    config = config_with(
        **{
            "deepspeed.zero_optimization.overlap_comm": False,
            "deepspeed.zero_optimization.offload_optimizer": {"device": "cpu"},
            "deepspeed.fp16.loss_scale": 0,
            "deepspeed.comms_logger": {"enabled": True},
        }
    )
    resolved = resolve_deepspeed_config(config, 1)
    zero = resolved["zero_optimization"]
    assert (zero["stage"], zero["overlap_comm"], zero["offload_optimizer"]) == (2, False, {"device": "cpu"})
    assert resolved["fp16"] == {"enabled": False, "loss_scale": 0}
    assert resolved["comms_logger"] == {"enabled": True}
    zero["offload_optimizer"]["device"] = "nvme"
    assert config.deepspeed["zero_optimization"]["offload_optimizer"] == {"device": "cpu"}


@pytest.mark.parametrize(
    ("key", "remedy"),
    [
        ("train_batch_size", "set training.global_batch_size and training.micro_batch_size instead"),
        ("train_micro_batch_size_per_gpu", "set training.global_batch_size"),
        ("gradient_accumulation_steps", "set training.global_batch_size"),
        ("optimizer", "use the 'optimizer' section instead"),
        ("scheduler", "use the 'schedule' section instead"),
    ],
)
def test_what_other_sections_say_is_refused(key, remedy):
    with pytest.raises(ConfigError, match=f"deepspeed.{key}: {remedy}"):
        resolve_deepspeed_config(config_with(**{f"deepspeed.{key}": 4}), 1)
