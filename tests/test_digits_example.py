"""The digits as shards: all of them, once, in two halves."""

import sys
from functools import partial

import numpy as np
import pytest
from sklearn.datasets import load_digits

from nar_scale.data import DatasetIndex, DatasetInfo
from nar_scale.data.formats.npy import decode_npy
from nar_scale.errors import UserError
from nar_scale.examples.digits import prepare_digits
from tests.data.corpora import check_whole
from tests.data.killing import killed_before
from tests.data.preparation.preparing import files
from tests.errors import refused


def test_the_halves_are_the_alternate_digits(tmp_path):
    info = prepare_digits(tmp_path / "digits")
    assert info == DatasetInfo.load(tmp_path / "digits")
    assert (info.tokenizer, info.vocabulary_size, info.end_token, info.seq_len) == (None, 17, None, 64)
    digits = load_digits()
    for first, split in enumerate(("train", "validation")):
        index = DatasetIndex.open(tmp_path / "digits", f"{split}/*.tar", ["tokens.npy", "cls"], progress=False)
        everything = np.arange(index.num_samples)
        images = [decode_npy(content) for content in index.read_many(everything)]
        assert {image.dtype for image in images} == {np.dtype(np.uint8)}
        assert np.array_equal(images, digits.data[first::2])
        assert [int(content) for content in index.read_many(everything, "cls")] == digits.target[first::2].tolist()
        assert (info.splits[split].samples, info.splits[split].tokens) == (len(everything), 64 * len(everything))
        assert info.splits[split].bytes_per_token is None
    assert info.num_classes == 10


def test_digits_are_overwritten_on_demand_alone(tmp_path):
    prepare_digits(tmp_path)
    shard = tmp_path / "train" / "shard-000000.tar"
    before = shard.read_bytes()
    assert prepare_digits(tmp_path) == DatasetInfo.load(tmp_path)
    (tmp_path / ".prepared").unlink()  # as another data set has it, or none
    with refused(UserError, tmp_path, "--overwrite"):
        prepare_digits(tmp_path)
    prepare_digits(tmp_path, overwrite=True)
    assert shard.read_bytes() == before
    assert DatasetIndex.open(tmp_path, "train/*.tar", ["cls"], progress=False).num_samples == 899


@pytest.mark.parametrize("moved", [0, 1, 2])
def test_killed_on_the_way_into_place_the_same_command_goes_on(tmp_path, moved):
    indexed = 2  # shards, each by one rename
    assert killed_before(indexed + 2 * moved + 1, partial(prepare_digits, tmp_path), ["replace"])
    info = prepare_digits(tmp_path)
    check_whole(tmp_path)
    assert info == DatasetInfo.load(tmp_path)
    assert files(tmp_path) == ["dataset.json", "train", "validation"]


def test_without_scikit_learn_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(UserError, match=r"^the digits need scikit-learn: pip install 'nar_scale\[digits\]'$"):
        prepare_digits(tmp_path / "digits")
    assert not (tmp_path / "digits").exists()
