"""Settings of the command line: what is wrong with one is blamed on the command line, and what was meant is named."""

import pytest
import yaml

from nar_scale.config import load_config
from nar_scale.errors import ConfigError
from tests.errors import assert_names

from .helpers import VALUES


@pytest.fixture
def yaml_file(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(VALUES))
    return path


def refusal(path, *overrides):
    with pytest.raises(ConfigError) as raised:
        load_config(path, overrides)
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("training.stesp=5", ["'training.stesp'", "'training.steps'"]),
        ("trainig.steps=5", ["'trainig'", "'training'"]),
        ("xyz.abc=1", ["'xyz'", "training", "model"]),
        ("model.dim=abc", ["model.dim", "'abc'"]),
        ("training.steps=-3", ["training.steps", -3]),
        ("optimizer.kind=adam", ["optimizer.kind", "'adamw'", "'adam'"]),
        ("objective.guidance_scale=-1", ["decoding.guidance", -1]),
        ("data.sources.web.directry=x", ["'data.sources.web.directry'", "'data.sources.web.directory'"]),
        ("model.dim=[", ["'model.dim=['", "YAML"]),
        ("model.dim.x=3", ["'model.dim.x=3'", "'dim'"]),
        ("deepspeed.a=&a [*a]", ["'deepspeed.a=&a [*a]'", "within itself"]),
        ("training.steps=2026-13-45", ["'training.steps=2026-13-45'", "YAML"]),
        (f"training.steps={'9' * 5000}", ["YAML", "digits"]),
    ],
)
def test_what_is_wrong_with_an_override_is_not_blamed_on_the_file(yaml_file, override, named):
    message = refusal(yaml_file, override).split(";")[0] if "sources" in override else refusal(yaml_file, override)
    assert message.startswith("command line: ")
    assert_names(message, *named)
    assert yaml_file.name not in message


@pytest.mark.parametrize(
    ("of_file", "overrides", "left_out"),
    [
        ({"optimizer": {"kind": "muon", "muon_momentum": 0.9}}, ["optimizer.kind=adamw"], "muon_momentum"),
        (
            {"objective": {"kind": "non_autoregressive", "loss": "unweighted"}},
            ["objective.kind=autoregressive"],
            "loss",
        ),
        ({"decoding": {"sampler": "threshold", "threshold": 0.7}}, ["decoding.sampler=confidence"], "threshold"),
    ],
)
def test_another_kind_leaves_out_what_the_file_says_of_its_own(tmp_path, of_file, overrides, left_out):
    path = tmp_path / "small.yaml"
    (section,) = of_file
    kept = {key: value for key, value in VALUES[section].items() if key != "kind"} if section in VALUES else {}
    path.write_text(yaml.safe_dump({**VALUES, section: {**kept, **of_file[section]}}))
    assert left_out in load_config(path).model_dump()[section]
    assert left_out not in load_config(path, overrides).model_dump()[section]


def test_a_key_of_another_kind_on_the_command_line_is_refused(yaml_file):
    message = refusal(yaml_file, "optimizer.kind=adamw", "optimizer.muon_momentum=0.9")
    assert_names(message, "command line", "optimizer.muon_momentum", "muon", "adamw")


def test_a_misspelt_key_of_the_file_stays_one_with_another_kind(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump({**VALUES, "optimizer": {"kind": "muon", "learning_rte": 0.9}}))
    assert_names(refusal(path, "optimizer.kind=adamw"), "'optimizer.learning_rte'", "'optimizer.learning_rate'")


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("steps=5", ["'training.steps=5'", "'decoding.steps=5'"]),
        ("steps", ["'training.steps=VALUE'"]),
        ("stepps=5", ["'training.steps=5'"]),
        ("heads=3", ["'model.heads=3'"]),
        ("learningrate=3e-4", ["'optimizer.learning_rate=3e-4'"]),
        ("model.dim", ["'model.dim=VALUE'"]),
        ("model=3", ["model.KEY=3"]),
    ],
)
def test_what_has_no_section_or_no_value_names_what_was_meant(yaml_file, override, meant):
    message = refusal(yaml_file, override)
    assert message.startswith(f"command line: {override!r}")
    assert_names(message, "section.key=value", *meant)
    assert message.index(meant[0]) == min(message.index(each) for each in meant)


def test_what_means_nothing_has_no_suggestion(yaml_file):
    assert "did you mean" not in refusal(yaml_file, "other.yaml")


def test_a_contradiction_names_the_file_and_the_override(yaml_file):
    message = refusal(yaml_file, "model.heads=3", "training.seed=1")
    assert_names(message, yaml_file, "model.heads", "command line", 16, 3)
    assert not message.startswith("command line")
    assert "training.seed" not in message
    other = refusal(yaml_file, "decoding.sampler=left_to_right", "training.seed=1")
    assert_names(other, yaml_file, "decoding.sampler", "command line")
    assert "training.seed" not in other


def test_problems_of_both_are_told_apart(yaml_file):
    yaml_file.write_text(yaml.safe_dump({**VALUES, "modle": {"dim": 1}}))
    ours, files = refusal(yaml_file, "training.stesp=5").split("; ", 1)
    assert_names(ours, "command line", "'training.stesp'")
    assert_names(files, "'modle'", yaml_file)
    assert refusal(yaml_file, "model.dim=16").endswith(f"(in {yaml_file})")
