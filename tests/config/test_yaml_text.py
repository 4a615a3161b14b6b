"""YAML that is written to do harm: nothing of it runs, none of it grows, and each is refused in a line."""

import itertools

import pytest
import yaml

from nar_scale.config import load_config
from nar_scale.config.yaml_text import MOST_VALUES, read_yaml
from nar_scale.errors import ConfigError
from tests.errors import assert_names

from .helpers import VALUES


def refusal(text):
    with pytest.raises(ConfigError) as raised:
        read_yaml(text, "a test")
    message = str(raised.value)
    assert "\n" not in message
    assert len(message) < 400
    return message


@pytest.mark.parametrize(
    "tag", ["object/apply:os.mkdir", "object/new:os.mkdir", "name:os.mkdir", "object:subprocess.Popen"]
)
def test_no_object_is_made_and_no_function_called(tag, tmp_path):
    target = tmp_path / "made"
    assert_names(refusal(f"model: !!python/{tag} [{target}]"), "a test", f"python/{tag}")
    assert not target.exists()


def test_a_few_aliases_that_stand_for_billions_are_refused():
    names = "abcdefghijkl"
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]" for old, new in itertools.pairwise(names)]
    assert_names(refusal("\n".join(lines)), "a test", f"{MOST_VALUES:,}", "aliases")
    merged = ["a: &a {k: 1}", *(f"{new}: &{new} {{x: *{old}, y: *{old}}}" for old, new in itertools.pairwise(names))]
    assert len(read_yaml("\n".join(merged), "a test")) == len(names)  # 2 ** 12 values are no harm


@pytest.mark.parametrize("text", ["a: &a [*a]", "&a {b: *a}", "a: &a {b: {c: [1, *a]}}", "&a [[*a]]"])
def test_an_alias_within_itself_is_refused(text):
    assert_names(refusal(text), "a test", "within itself")


@pytest.mark.parametrize(
    "number", ["9" * 5000, f"0x{'f' * 5000}", f"1{':59' * 3000}", str(2**128), "2026-02-30", "2026-01-01 25:61:61"]
)
def test_numbers_and_dates_that_are_none_are_refused_where_they_stand(number, tmp_path):
    refusal(f"a: {number}")
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(VALUES) + f"zero: {number}")
    with pytest.raises(ConfigError) as raised:
        load_config(path)
    assert_names(str(raised.value), path)
    assert len(str(raised.value)) < 400


@pytest.mark.parametrize("number", ["1e999", str(2**128 - 1), "-.inf", "25:30:59", "2026-01-01"])
def test_a_value_that_is_none_of_its_key_is_named_with_it(number, tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump({**VALUES, "zero": {}}).replace("dim: 16", f"dim: {number}"))
    with pytest.raises(ConfigError) as raised:
        load_config(path)
    assert_names(str(raised.value), path, "model")


@pytest.mark.parametrize("text", ["a: [" * 3000, "- " * 3000, "a: \0", "\x1b[2J: 1", "%YAML 9.9\n---\na: 1", "a: *b"])
def test_what_is_no_yaml_is_refused_without_what_would_move_the_cursor(text):
    message = refusal(text)
    assert_names(message, "a test")
    assert message.isprintable()
