"""What follows from a configuration and `dataset.json` alone."""

from dataclasses import replace

import pytest

from nar_scale.config import DataConfig, SourceConfig
from nar_scale.data import DatasetInfo, SplitInfo
from nar_scale.errors import ConfigError
from nar_scale.planning.data_sets import padding_warnings, vocabulary_of
from tests.errors import assert_names, refused


def info_of(seq_len, mean):
    split = SplitInfo(documents=1, samples=100, tokens=100 * mean, bytes=0, shards=1)
    return DatasetInfo("byte", 257, 256, seq_len, "tokens.npy", {"train": split}, {})


@pytest.mark.parametrize(("seq_len", "mean"), [(64, 64), (64, 20), (128, 64), (120, 120)])
def test_padding_is_said_with_both_lengths_and_the_remedy(seq_len, mean):
    sources = {"web": SourceConfig(directory="data/web")}
    (warning,) = padding_warnings(128, sources, {"web": info_of(seq_len, mean)})
    remedy = f"model.max_seq_len to {seq_len}" if seq_len < 128 else "--one-document-per-sample"
    assert_names(warning, "data/web", seq_len, 128, f"{1 - mean / 128:.0%}", remedy)


@pytest.mark.parametrize(("seq_len", "mean"), [(128, 128), (128, 100), (127, 127)])
def test_little_padding_is_not_worth_a_word(seq_len, mean):
    assert padding_warnings(128, {"": SourceConfig(directory="data/web")}, {"": info_of(seq_len, mean)}) == []


def test_a_vocabulary_smaller_than_that_of_the_data_is_refused_at_the_start():
    sources, infos = {"": SourceConfig(directory="data/web")}, {"": info_of(64, 64)}
    for size in (None, 257, 320):  # more may be rounded up
        data = DataConfig(directory="data/web", vocabulary_size=size)
        assert vocabulary_of(data, sources, infos) == (size or 257, "byte", 256, "ids")
    with refused(ConfigError, "data.vocabulary_size", 256, "data/web", 257):
        vocabulary_of(DataConfig(directory="data/web", vocabulary_size=256), sources, infos)


@pytest.mark.parametrize(
    ("forms", "expected"), [(("text", "text"), "text"), (("text", "ids"), "ids"), ((None, "text"), "text"), ((), "ids")]
)
def test_special_tokens_are_text_where_they_are_in_all_data_with_a_description(forms, expected):
    sources = {str(number): SourceConfig(directory=f"data/{number}") for number in range(2)}
    infos = {
        name: None if form is None else replace(info_of(64, 64), special_tokens=form)
        for name, form in zip(sources, forms)
    }
    data = DataConfig(directory="data", vocabulary_size=257)
    assert vocabulary_of(data, sources, infos).special_tokens == expected
