"""The section `decoding`, and the keys that it has taken over from `objective`."""

import pytest

from nar_scale.config import (
    SAMPLERS,
    SAMPLERS_OF_KIND,
    UNMASKING_SAMPLERS,
    ConfidenceDecoding,
    LeftToRightDecoding,
    RandomDecoding,
    ThresholdDecoding,
    dump_config,
    load_config,
)
from nar_scale.errors import ConfigError
from tests.errors import refused

from .helpers import config_with

AR = {"objective.kind": "autoregressive"}
CONDITIONAL = {"objective.num_classes": 2, "data.class_field": "cls"}


def saved(tmp_path, **changes):
    path = tmp_path / "saved.yaml"
    path.write_text(dump_config(config_with(**changes)))
    return path


def version_0_1(tmp_path, *lines):
    """A file with keys that stood in `objective`."""
    path = tmp_path / "old.yaml"
    path.write_text(
        "\n".join(
            (
                "model: {dim: 16, depth: 2, heads: 2, max_seq_len: 12}",
                "data: {directory: data}",
                "optimizer: {learning_rate: 0.001}",
                "training: {steps: 10, global_batch_size: 8, micro_batch_size: 2}",
                *lines,
            )
        )
    )
    return path


@pytest.mark.parametrize("sampler", UNMASKING_SAMPLERS)
def test_each_sampler_is_a_class_with_its_settings(tmp_path, sampler):
    config = config_with(**{"decoding.sampler": sampler, "decoding.temperature": 0.5, "decoding.steps": 3})
    assert type(config.decoding) is SAMPLERS[sampler]
    assert config.sampler() == config.decoding == SAMPLERS[sampler](sampler=sampler, temperature=0.5, steps=3)
    assert load_config(saved(tmp_path, **{"decoding.sampler": sampler})).decoding == SAMPLERS[sampler](sampler=sampler)


def test_every_sampler_is_of_some_kind_of_model_and_every_kind_has_one():
    assert all(set(samplers) <= set(SAMPLERS) for samplers in SAMPLERS_OF_KIND.values())
    assert set(UNMASKING_SAMPLERS) | {"left_to_right", "self_speculative"} == set(SAMPLERS)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, RandomDecoding(sampler="random")),
        ({"objective.self_token_critic": True}, ConfidenceDecoding(sampler="confidence")),
        (AR, LeftToRightDecoding(sampler="left_to_right")),
        ({"decoding.steps": 3, "decoding.top_p": 0.5}, RandomDecoding(sampler="random", steps=3, top_p=0.5)),
        ({**AR, "decoding.stop": ["\n", "."]}, LeftToRightDecoding(sampler="left_to_right", stop=("\n", "."))),
        ({"decoding.sampler": "threshold"}, ThresholdDecoding(sampler="threshold", threshold=0.9)),
    ],
)
def test_auto_stands_for_what_suits_the_model_also_when_it_was_saved(tmp_path, changes, expected):
    assert config_with(**changes).sampler() == expected
    assert load_config(saved(tmp_path, **changes)).sampler() == expected


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"decoding.sampler": "greedy"}, ["decoding.sampler", "'greedy'", "'confidence'", "'left_to_right'"]),
        ({"decoding.sampler": "left_to_right"}, ["left_to_right", "non_autoregressive", "confidence"]),
        ({**AR, "decoding.sampler": "random"}, ["random", "autoregressive", "left_to_right"]),
        ({**AR, "decoding.steps": 4}, ["decoding.steps", "autoregressive"]),
        ({**AR, "decoding.guidance": 2.0}, ["decoding.guidance", "objective.num_classes"]),
        ({"decoding.guidance": 2.0}, ["decoding.guidance", "objective.num_classes", "objective.prefix_length"]),
        ({**CONDITIONAL, "decoding.guidance": -1.0}, ["decoding.guidance", -1.0]),
        ({"decoding.temperature": -1.0}, ["decoding.temperature", -1.0]),
        ({"decoding.top_k": 0}, ["decoding.top_k", 0]),
        ({"decoding.top_k": 0.3}, ["decoding.top_k", "integer", 0.3]),
        ({"decoding.top_p": 0.0}, ["decoding.top_p", 0.0]),
        ({"decoding.steps": 0}, ["decoding.steps", 0]),
        ({"decoding.stop": "end"}, ["decoding.stop", "'end'"]),
        ({"decoding.threshold": 0.5}, ["decoding.threshold", "decoding.sampler threshold", "auto"]),
        ({"decoding.sampler": "threshold", "decoding.threshold": 0.0}, ["decoding.threshold", 0.0]),
        ({"decoding.sampler": "threshold", "decoding.threshold": 1.5}, ["decoding.threshold", 1.5]),
        ({"decoding.sampler": "threshold", "decoding.factor": 2.0}, ["decoding.factor", "factor", "threshold"]),
        ({"decoding.sampler": "factor", "decoding.factor": 0.0}, ["decoding.factor", 0.0]),
        ({"decoding.sampler": "wino", "decoding.keep_threshold": 2.0}, ["decoding.keep_threshold", 2.0]),
        ({"decoding.sampler": "remask", "decoding.remask_rule": "loop"}, ["decoding.remask_rule", "'cap'", "'loop'"]),
        ({"decoding.tresh": 0.5}, ["'decoding.tresh'", "'decoding.threshold'"]),
        ({"decoding": None, "decoding.sampler": None}, ["decoding.sampler", None]),
    ],
)
def test_what_does_not_fit_is_refused(changes, named):
    with refused(ConfigError, *named):
        config_with(**{key: value for key, value in changes.items() if key != "decoding"})


def test_former_keys_mean_the_present_ones(tmp_path):
    former = config_with(**CONDITIONAL, **{"objective.steps": 5, "objective.guidance_scale": 2.0})
    assert former == config_with(**CONDITIONAL, **{"decoding.steps": 5, "decoding.guidance": 2.0})
    file = version_0_1(tmp_path, "objective: {kind: non_autoregressive, steps: 5}")
    assert load_config(file).sampler().steps == 5


@pytest.mark.parametrize("section", ["", "decoding: {steps: 5, sampler: random}"])
def test_an_override_wins_over_a_file_by_either_name(tmp_path, section):
    file = version_0_1(tmp_path, "objective: {kind: non_autoregressive, steps: 5}", section)
    for key in ("objective.steps", "decoding.steps"):
        assert load_config(file, [f"{key}=7"]).sampler().steps == 7
    assert load_config(file, ["objective.steps=7", "decoding.steps=8"]).sampler().steps == 8  # the last one, as always


def test_one_setting_by_both_names_is_refused_unless_they_agree(tmp_path):
    file = version_0_1(tmp_path, "objective: {kind: non_autoregressive, steps: 5}", "decoding: {steps: 6}")
    with refused(ConfigError, "objective.steps", 5, "decoding.steps", 6, file):
        load_config(file)
    with refused(ConfigError, "objective.steps", "decoding.steps", "(in a test)"):
        config_with(**{"objective.steps": 5, "decoding.steps": 6})
    assert config_with(**{"objective.steps": 5, "decoding.steps": 5}).sampler().steps == 5


@pytest.mark.parametrize(("key", "value"), [("steps", 18), ("guidance_scale", 1.0)])
def test_autoregressive_runs_were_saved_with_former_keys_that_mean_nothing(key, value):
    assert config_with(**AR, **{f"objective.{key}": value}) == config_with(**AR)
