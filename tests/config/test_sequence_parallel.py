import pytest

from nar_scale.config import gradient_accumulation_steps, resolve_deepspeed_config
from nar_scale.errors import ConfigError
from tests.errors import refused

from .helpers import config_with

SHARED = {"training.sequence_parallel_size": 2, "model.heads": 4}


def test_ranks_that_share_a_sequence_count_once() -> None:
    config = config_with(**SHARED)
    alone = config_with(**{"model.heads": 4})
    assert gradient_accumulation_steps(config, 2) == gradient_accumulation_steps(alone, 1)
    resolved = resolve_deepspeed_config(config, 2)
    micro_batches = resolved["gradient_accumulation_steps"] * resolved["train_micro_batch_size_per_gpu"]
    assert micro_batches == config.training.global_batch_size
    assert resolved["train_batch_size"] == 2 * micro_batches  # DeepSpeed insists on batch = micro-batches x ranks


def test_ranks_that_do_not_divide_are_refused() -> None:
    with refused(ConfigError, "training.sequence_parallel_size", 2, 3):
        gradient_accumulation_steps(config_with(**SHARED), 3)


@pytest.mark.parametrize(
    ("size", "named"),
    [(5, ["model.max_seq_len", 12, 5]), (6, ["model.heads", 2, 6])],
)
def test_sequences_that_do_not_divide_are_refused(size, named) -> None:
    with refused(ConfigError, "training.sequence_parallel_size", *named):
        config_with(**{"training.sequence_parallel_size": size})


@pytest.mark.parametrize("key", ["sequence_parallel_size", "data_parallel_size"])
def test_the_other_way_to_share_sequences_is_refused(key) -> None:
    with refused(ConfigError, f"deepspeed.{key}", "training.sequence_parallel_size"):
        resolve_deepspeed_config(config_with(**{f"deepspeed.{key}": 2}), 2)


def test_tensor_parallelism_is_refused() -> None:
    config = config_with(**{"deepspeed.tensor_parallel": {"autotp_size": 2}})
    with refused(ConfigError, "deepspeed.tensor_parallel", "training.zero_stage", "training.sequence_parallel_size"):
        resolve_deepspeed_config(config, 2)
