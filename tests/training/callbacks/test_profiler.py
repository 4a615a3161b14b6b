"""Which steps can be profiled; tests/distributed/test_monitoring.py profiles some."""

import pytest

from nar_scale.config import validate_config
from nar_scale.errors import ConfigError
from tests.training.metrics.test_writer import CONFIG


def configured(**logging):
    return validate_config({**CONFIG, "logging": logging}, "test").logging


def test_steps_to_profile():
    settings = configured(profile_steps=[2, 3], profile_ranks=[0, 3], flops_step=4)
    assert (settings.profile_steps, settings.profile_ranks, settings.flops_step) == ((2, 3), (0, 3), 4)
    assert configured().profile_steps is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"profile_steps": [0, 10]}, "profile_steps.0: input should be greater than 0"),
        ({"flops_step": 0}, "flops_step: input should be greater than 0"),
        ({"peak_flops": 0}, "peak_flops: input should be greater than 0"),
    ],
)
def test_steps_that_are_none(settings, message):
    with pytest.raises(ConfigError) as error:
        configured(**settings)
    assert message in str(error.value)
