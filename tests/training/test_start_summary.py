"""What the table at the start of a run says of its settings; its other rows are those of real runs, in distributed."""

from pathlib import Path

import pytest

from nar_scale.config import load_config
from nar_scale.training.start_summary import differing_settings, settings_rows
from tests.config.helpers import config_with

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


def test_settings_are_those_that_differ_and_that_no_other_row_shows():
    changes = {
        "optimizer.betas": [0.9, 0.99],
        "decoding.temperature": 0.5,
        "training.zero_stage": 3,
        "training.run_directory": "runs/x",
        "deepspeed.zero_optimization.overlap_comm": False,
    }
    assert differing_settings(config_with(**changes)) == {
        "optimizer.learning_rate": 0.001,
        "optimizer.betas": [0.9, 0.99],
        "decoding.temperature": 0.5,
        "deepspeed.zero_optimization.overlap_comm": False,
    }


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configurations_take_few_lines_of_words_that_can_be_copied(path):
    config = load_config(path)
    lines = settings_rows(config)
    assert len(lines) <= 7
    assert max(map(len, lines)) <= 110
    text = " ".join(line[10:] for line in lines)
    known = differing_settings(config)
    words = [word.rstrip(",") for word in text.split() if "=" in word]
    assert {word.partition("=")[0] for word in words} <= set(known)
    cut = [int(line.split()[1]) for line in lines if line.split()[0] == "and"]
    assert len(words) + sum(cut) == len(known)


def test_long_and_dangerous_values_are_shortened_and_escaped():
    options = {"key": "x" * 3000, "name": "\x1b[2J\nevil"}
    text = "\n".join(settings_rows(config_with(**{"data.storage_options": options, "data.index_directory": "\x1b[2J"})))
    assert len(text) < 400
    assert "\x1b" not in text
    assert "data.index_directory=" in text
