"""Padding in shards of others, which do not say how long their samples are."""

import logging

import numpy as np
import pytest

from nar_scale.data import DatasetIndex, SampleFormat
from nar_scale.training.data.build import _warn_of_padding
from tests.data.shard_files import write_samples
from tests.errors import assert_names


@pytest.mark.parametrize(
    ("lengths", "named"),
    [
        ([64] * 100, (64, "50%", "model.max_seq_len to 64")),
        ([128, 16] * 40, (128, "44%")),
        ([128] * 10, None),
        ([100, 128] * 40, None),
    ],
)
def test_the_first_samples_tell(tmp_path, caplog, lengths, named):
    write_samples(tmp_path / "a.tar", [np.zeros(length, np.uint16) for length in lengths])
    index = DatasetIndex.open(tmp_path, "*.tar", progress=False)
    with caplog.at_level(logging.WARNING):
        _warn_of_padding(index, SampleFormat(128, 300), str(tmp_path))
    if named is None:
        assert caplog.messages == []
    else:
        (message,) = caplog.messages
        assert_names(message, tmp_path, 128, *named, min(64, len(lengths)))


def test_faults_are_left_to_training(tmp_path, caplog):
    write_samples(tmp_path / "a.tar", [b"no array", np.zeros(4)])
    index = DatasetIndex.open(tmp_path, "*.tar", progress=False)
    _warn_of_padding(index, SampleFormat(128, 300), str(tmp_path))
    assert caplog.messages == []
