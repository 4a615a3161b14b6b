"""The best interval between checkpoints, against a search for the least time lost."""

import math

import numpy as np
import pytest

from nar_scale.objectives import build_wrapper
from nar_scale.planning.cost.checkpoint_interval import best_interval, checkpoint_size, plan_checkpoints
from nar_scale.planning.cost.partitions import ParameterSizes
from tests.config.helpers import config_with


def expected_time(interval, blocked, between_failures):
    """Daly's expected time of a unit of work, where failures come at random, without restarts (2006, eq. 9)."""
    return between_failures * np.expm1((interval + blocked) / between_failures) / interval


@pytest.mark.parametrize(("blocked", "between_failures"), [(10, 3600), (60, 10_000), (600, 20_000), (1, 10**6)])
def test_no_other_interval_loses_less(blocked, between_failures):
    intervals = np.linspace(1, between_failures, 1_000_000)
    best = intervals[expected_time(intervals, blocked, between_failures).argmin()]
    assert best_interval(blocked, between_failures) == pytest.approx(best, rel=0.02)
    assert best_interval(blocked, between_failures) < math.sqrt(2 * blocked * between_failures) * 1.01


def test_sizes_are_those_of_the_states():
    sizes = ParameterSizes(((1000,), (24,)), (2, 2))
    assert checkpoint_size(sizes, config_with()) == 1024 * 12
    assert checkpoint_size(sizes, config_with(**{"training.ema_decay": 0.9})) == 1024 * 16
    assert checkpoint_size(sizes, config_with(**{"training.master_weights": "bf16"})) == 1024 * 6
    lion = config_with(**{"optimizer.kind": "lion"})
    assert checkpoint_size(ParameterSizes.of(build_wrapper(lion, 50), lion.optimizer), lion) == 8 * sum(
        weight.numel() for weight in build_wrapper(lion, 50).parameters()
    )


def test_more_devices_save_more_often():
    config = config_with()
    plans = [plan_checkpoints(1e12, config, devices, 10.0, 5e9, 64e9) for devices in (8, 512, 16_384)]
    assert [plan.interval_steps for plan in plans] == sorted((plan.interval_steps for plan in plans), reverse=True)
    # 16,384 H100: one failure in 3.05 hours, as Llama 3 had
    assert plans[-1].failure_seconds / 3600 == pytest.approx(3.05, abs=0.01)
    assert plans[0].write_seconds == 200
    assert plans[0].blocked_seconds == 201


def test_an_asynchronous_checkpoint_blocks_for_a_copy_alone():
    config = config_with(**{"checkpoint.asynchronous": True})
    plan = plan_checkpoints(640e9, config, 10, 1.0, 1e9, 64e9)
    assert plan.blocked_seconds == 1 + 1
    assert plan.interval_seconds >= plan.write_seconds == 640
