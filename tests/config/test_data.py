"""Where data comes from: one directory, or sources that are mixed."""

import pytest

from nar_scale.config import dump_config, load_config, validate_config
from nar_scale.errors import ConfigError
from tests.errors import refused

from .helpers import VALUES


def data_config(**data):
    return validate_config({**VALUES, "data": data}, "a test")


TWO = {"web": {"directory": "web"}, "code": {"directory": "code"}}


def weighted(**weights):
    return {name: {"directory": name, "weight": weight} for name, weight in weights.items()}


@pytest.mark.parametrize(
    ("data", "named"),
    [
        ({}, ["directory", "sources"]),
        ({"directory": "a", "sources": TWO}, ["directory", "sources"]),
        ({"directory": "a", "temperature": 2.0}, ["temperature", "sources"]),
        ({"directory": "a", "curriculum": [{"from_step": 1, "weights": {"a": 1.0}}]}, ["curriculum", "sources"]),
        ({"sources": TWO, "sequential": True}, ["sequential", "directory"]),
        ({"sources": {**weighted(web=1.0), "code": {"directory": "code", "epochs": 2.0}}}, ["weights", "epochs"]),
        ({"sources": {**weighted(web=1.0), "code": {"directory": "code"}}}, ["weight", "epochs"]),
        ({"sources": weighted(web=1.0, code=1.0), "temperature": 2.0}, ["temperature", "weights", "epochs"]),
        ({"sources": TWO, "curriculum": [{"from_step": 1, "weights": {"cod": 1.0}}]}, ["curriculum", "'cod'", "web"]),
        (
            {"sources": TWO, "curriculum": [{"from_step": step, "weights": {"web": 1.0}} for step in (3, 3)]},
            ["curriculum", "[3, 3]"],
        ),
        ({"directory": "s3://bucket/web"}, ["directory", "s3://bucket/web", "cache_directory"]),
        ({"sources": {"web": {"directory": "https://host/web"}}}, ["web", "https://host/web", "cache_directory"]),
        (
            {"sources": {"web": {"directory": "web", "wieght": 1.0}}},
            ["data.sources.web.wieght", "data.sources.web.weight"],
        ),
        ({"sources": {"web": {"directory": "web", "weight": -1.0}}}, ["data.sources.web.weight", "-1.0"]),
    ],
)
def test_what_does_not_go_together_is_refused(data, named):
    with refused(ConfigError, *named):
        data_config(**data)


def test_a_mixture_survives_being_written_and_read(tmp_path):
    config = data_config(
        sources=weighted(web=3.0, code=1.0),
        curriculum=[{"from_step": 5, "weights": {"code": 1.0}}],
        storage_options={"endpoint_url": "http://localhost:9000"},
    )
    (tmp_path / "a.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "a.yaml").data == config.data
