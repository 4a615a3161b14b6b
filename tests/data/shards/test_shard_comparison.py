"""Shards that are missing, added or others than recorded are named."""

import os
from functools import partial

import numpy as np
import pytest

from nar_scale.data import DatasetIndex, DatasetInfo, prepare
from nar_scale.data.shards.shard_comparison import (
    SHARD_LIST,
    check_against_info,
    describe_difference,
    write_shard_list,
)
from nar_scale.errors import DataError
from tests.data.shard_files import numbered_index, write_samples
from tests.errors import assert_names, refused


@pytest.fixture
def prepared(tmp_path):
    (tmp_path / "text").mkdir()
    for number in range(40):
        (tmp_path / "text" / f"{number}.txt").write_text(f"document {number} " * 20)
    output = tmp_path / "data"
    settings = {"seq_len": 64, "validation": 0.3, "samples_per_shard": 16, "workers": 1, "progress": False}
    prepare([tmp_path / "text"], output, **settings)
    assert DatasetInfo.load(output).splits["train"].shards > 3
    return output


def check(directory, pattern, skip_faults=False):
    index = DatasetIndex.open(directory, pattern, progress=False, skip_faults=skip_faults)
    check_against_info(index, str(directory), pattern, DatasetInfo.find(str(directory), {}))


WHOLE = ["train/*.tar", "train/shard-*.tar", "*/*.tar", "**/*.tar", "./train/*.tar"]


@pytest.mark.parametrize("pattern", WHOLE)
def test_missing_and_added_shards_are_named(prepared, pattern):
    check(prepared, pattern)
    first, second = (prepared / "train" / f"shard-00000{number}.tar" for number in (0, 1))
    content = second.read_bytes()
    second.unlink()
    with refused(DataError, prepared / "dataset.json", "train/shard-000001.tar"):
        check(prepared, pattern)
    second.write_bytes(content)
    os.link(first, prepared / "train" / "shard-000099.tar")
    with refused(DataError, prepared / "dataset.json", "train/shard-000099.tar"):
        check(prepared, pattern)


def test_a_part_of_the_shards_can_be_asked_for(prepared):
    (prepared / "train" / "shard-000003.tar").unlink()
    check(prepared, "train/shard-00000[01].tar")
    check(prepared, "train/shard-{000000..000002}.tar")
    check(prepared, "validation/*.tar")


def test_a_shard_with_another_number_of_samples_is_noticed(prepared):
    shard = prepared / "train" / "shard-000001.tar"
    stated = DatasetInfo.load(prepared).splits["train"].samples
    write_samples(shard, [np.arange(64)] * 15)
    (prepared / "train" / "shard-000001.tar.index").unlink()
    with refused(DataError, prepared / "dataset.json", stated, stated - 1):
        check(prepared, "train/*.tar")


def test_damaged_shards_may_have_fewer_samples_where_that_is_allowed(prepared):
    shard = prepared / "train" / "shard-000001.tar"
    os.truncate(shard, 9000)
    (prepared / "train" / "shard-000001.tar.index").unlink()
    check(prepared, "train/*.tar", skip_faults=True)


def test_shards_without_a_dataset_json_are_not_compared(tmp_path):
    check_against_info(numbered_index(tmp_path, [2]), str(tmp_path), "shard-*.tar", None)


def test_the_shard_that_has_changed_since_a_run_was_started_is_named(tmp_path):
    run, shards = tmp_path / "run", tmp_path / "shards"
    run.mkdir()
    shards.mkdir()
    index = numbered_index(shards, [3, 1, 5])
    write_shard_list(run, index.fingerprint, {"web": index})
    difference = partial(describe_difference, run, index.fingerprint)
    assert difference({"web": index}) is None
    fewer = DatasetIndex.open(shards, "shard-00000[02].tar", progress=False)
    assert_names(difference({"web": fewer}), "shard-000001.tar", "web")
    write_samples(shards / "shard-000003.tar", [np.array([1])])
    more = DatasetIndex.open(shards, "shard-*.tar", progress=False)
    assert_names(difference({"web": more}), "shard-000003.tar", "web")
    (shards / "shard-000001.tar.index").unlink()
    write_samples(shards / "shard-000001.tar", [np.array([1])] * 2)
    other = DatasetIndex.open(shards, "shard-00000[012].tar", progress=False)
    assert_names(difference({"web": other}), "shard-000001.tar", 1, 2)


def test_a_list_is_replaced_by_that_of_other_shards_and_a_damaged_one_says_nothing(tmp_path):
    index = numbered_index(tmp_path, [3])
    write_shard_list(tmp_path, "earlier", {"": index})
    assert describe_difference(tmp_path, index.fingerprint, {}) is None
    write_shard_list(tmp_path, index.fingerprint, {"": index})
    assert_names(describe_difference(tmp_path, index.fingerprint, {}), "shard-000000.tar")
    whole = (tmp_path / SHARD_LIST).read_bytes()
    for content in (b"", b"no gzip", whole[:-9], whole[:30], whole[:20] + b"\xff" + whole[21:]):
        (tmp_path / SHARD_LIST).write_bytes(content)
        assert describe_difference(tmp_path, index.fingerprint, {}) is None
    write_shard_list(tmp_path, index.fingerprint, {"": index})
    assert (tmp_path / SHARD_LIST).read_bytes() == whole


def test_names_that_are_not_utf_8(tmp_path):
    shard = tmp_path / os.fsdecode(b"shard-\xff.tar")
    write_samples(shard, [np.array([7, 8])])
    for index_directory in (None, tmp_path / "indices"):
        index = DatasetIndex.open(tmp_path, "shard-*.tar", index_directory=index_directory, progress=False)
        assert index.read(0)
        write_shard_list(tmp_path, index.fingerprint, {"": index})
        assert describe_difference(tmp_path, index.fingerprint, {"": index}) is None
        assert describe_difference(tmp_path, index.fingerprint, {}).isprintable()
        assert index.name(0).isprintable()
    os.truncate(shard, 700)
    shard.with_name(f"{shard.name}.index").unlink()
    with refused(DataError, "shard-\\xff.tar", 700):
        DatasetIndex.open(tmp_path, "shard-*.tar", index_directory=tmp_path / "others", progress=False)
