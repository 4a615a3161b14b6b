"""Names and units of metrics: each is explained to users, and found by what is logged."""

import re
from pathlib import Path

import pytest

from nar_scale.training.metrics.names import UNITS, unit_of

PAGE = Path(__file__).parents[3] / "docs" / "training.md"
EXPLAINED_TOGETHER = {"TERM_loss": "generator_loss", "masked_LOW_to_HIGH": "masked_0.2_to_0.4"}


@pytest.mark.parametrize("name", UNITS)
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
    assert unit_of(name) == unit
