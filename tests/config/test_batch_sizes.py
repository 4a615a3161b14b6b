"""Steps, batch sizes and positions in the stream, by arithmetic."""

import pytest

from nar_scale.config import (
    batch_size_at,
    first_step_from,
    gradient_accumulation_steps,
    samples_before,
    steps_of_run,
)
from nar_scale.errors import ConfigError
from tests.errors import refused

from .helpers import config_with

WARMUP = [
    {"from_step": 0, "global_batch_size": 2},
    {"from_step": 3, "global_batch_size": 4},
    {"from_step": 5, "global_batch_size": 8},
]
SIZES = [2, 2, 2, 4, 4, 8, 8, 8]


def warmed_up(**changes):
    return config_with(**{"training.batch_size_warmup": WARMUP, "training.micro_batch_size": 1, **changes})


def test_sizes_and_positions_step_by_step():
    training = warmed_up().training
    assert [batch_size_at(training, step) for step in range(8)] == SIZES
    assert [samples_before(training, step) for step in range(9)] == [sum(SIZES[:step]) for step in range(9)]


def test_without_a_warm_up_they_are_multiples():
    training = config_with().training
    assert [batch_size_at(training, step) for step in (0, 7)] == [8, 8]
    assert [samples_before(training, step) for step in (0, 1, 7)] == [0, 8, 56]


@pytest.mark.parametrize("samples", range(1, 40))
def test_a_length_in_samples_takes_the_first_step_that_reaches_it(samples):
    config = warmed_up(**{"training.steps": None, "training.samples": samples})
    steps = steps_of_run(config)
    assert samples_before(config.training, steps - 1) < samples <= samples_before(config.training, steps)


def test_the_first_step_from_a_position_on():
    training = warmed_up().training
    for samples in range(50):
        step = first_step_from(training, samples)
        assert samples_before(training, step) >= samples
        assert step == 0 or samples_before(training, step - 1) < samples


@pytest.mark.parametrize(("tokens", "steps"), [(1, 1), (96, 1), (97, 2), (960, 10)])
def test_a_length_in_tokens(tokens, steps):
    assert steps_of_run(config_with(**{"training.steps": None, "training.tokens": tokens})) == steps


def test_a_length_in_steps():
    assert steps_of_run(warmed_up()) == 10


def test_accumulation_follows_the_size():
    assert [gradient_accumulation_steps(warmed_up(), 2, step) for step in range(8)] == [size // 2 for size in SIZES]
    assert gradient_accumulation_steps(warmed_up(), 2) == 4
    with refused(ConfigError, "training.batch_size_warmup", "step 0", 2, 4):
        gradient_accumulation_steps(warmed_up(), 4, 0)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"training.steps": None}, ["steps", "samples", "tokens", "none"]),
        ({"training.samples": 3}, ["tokens", "steps and samples"]),
        ({"training.batch_size_warmup": WARMUP[1:]}, ["batch_size_warmup", "[3, 5]", 0]),
        ({"training.batch_size_warmup": [WARMUP[0], *WARMUP[:0:-1]]}, ["batch_size_warmup", "[0, 5, 3]"]),
        ({"training.batch_size_warmup": WARMUP[:2]}, ["batch_size_warmup", 4, "global_batch_size", 8]),
        (
            {"training.batch_size_warmup": WARMUP, "data.sequential": True},
            ["training.batch_size_warmup", "data.sequential"],
        ),
        (
            {"training.steps": None, "training.tokens": 96, "schedule.warmup_steps": 1},
            ["schedule.warmup_steps", "training.steps", 1],
        ),
    ],
)
def test_lengths_and_warm_ups_that_make_no_sense(changes, named):
    with refused(ConfigError, *named):
        config_with(**changes)
