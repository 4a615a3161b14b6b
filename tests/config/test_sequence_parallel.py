import pytest

from nar_scale.config import gradient_accumulation_steps, resolve_deepspeed_config
from nar_scale.errors import ConfigError

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
    with pytest.raises(ConfigError, match=r"sequence_parallel_size 2 does not divide 3 rank.*start a multiple of 2"):
        gradient_accumulation_steps(config_with(**SHARED), 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training.sequence_parallel_size": 5}, "model.max_seq_len 12 is not a multiple of training.sequence_par"),
        (
            {"training.sequence_parallel_size": 6},
            "model.heads 2 is not a multiple of training.sequence_parallel_size 6",
        ),
    ],
)
def test_sequences_that_do_not_divide_are_refused(changes, message) -> None:
    with pytest.raises(ConfigError, match=message):
        config_with(**changes)


@pytest.mark.parametrize("key", ["sequence_parallel_size", "data_parallel_size"])
def test_the_other_way_to_share_sequences_is_refused(key) -> None:
    with pytest.raises(ConfigError, match=f"deepspeed.{key}: set training.sequence_parallel_size instead"):
        resolve_deepspeed_config(config_with(**{f"deepspeed.{key}": 2}), 2)


def test_tensor_parallelism_is_refused() -> None:
    config = config_with(**{"deepspeed.tensor_parallel": {"autotp_size": 2}})
    with pytest.raises(ConfigError, match=r"query/key norms and token critics wrongly.* use training.zero_stage 3 or"):
        resolve_deepspeed_config(config, 2)
