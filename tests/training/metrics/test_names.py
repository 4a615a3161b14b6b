"""Names and units of metrics: each is explained to users, and found by what is logged."""

import re
from pathlib import Path

import pytest

from nar_scale.training.metrics.names import METRICS, find_metric, tensorboard_tag

PAGE = Path(__file__).parents[3] / "docs" / "training.md"
EXPLAINED_TOGETHER = {"TERM_loss": "generator_loss", "masked_LOW_to_HIGH": "masked_0.2_to_0.4"}


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_is_explained(name):
    page = PAGE.read_text()
    table = page[page.index("| name | unit | meaning |") :].split("\n\n")[0]
    name = EXPLAINED_TOGETHER.get(name, re.sub("NUMBER", "N", name))
    if name.startswith("validation_SOURCE_"):
        name = "validation_SOURCE_..."
    assert f"`{name.replace('_of_SOURCE', '_of_NAME')}`" in table


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("loss", "nats"),
        ("critic_loss", "nats"),
        ("masked_0.2_to_0.4", "nats per masked token"),
        ("learning_rate_2", ""),
        ("samples_of_code-and-prose", ""),
        ("validation_code_bits_per_byte", "bits"),
        ("tokens_per_minute", None),
        ("masked", None),
    ],
)
def test_the_unit_of_a_name(name, unit):
    metric = find_metric(name)
    assert (None if metric is None else metric.unit) == unit


@pytest.mark.parametrize(
    ("name", "tag"),
    [
        ("critic_loss", "main/critic_loss"),
        ("validation_code_nats_per_token", "main/validation_code_nats_per_token"),
        ("masked_0.2_to_0.4", "loss_by_mask/masked_0.2_to_0.4"),
        ("tokens_per_second", "speed/tokens_per_second"),
        ("host_memory_now_gib", "memory/host_memory_now_gib"),
        ("checkpoint_seconds", "checkpoint/checkpoint_seconds"),
        ("samples_of_code", "data/samples_of_code"),
    ],
)
def test_the_place_of_a_name_in_tensorboard(name, tag):
    assert tensorboard_tag(name) == tag
