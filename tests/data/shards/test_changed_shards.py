"""Shards that are written again, with whatever care, are not read through the index of what they were."""

import json
import os
from functools import partial

import numpy as np
import pytest

from nar_scale.data import DatasetIndex, index_shards
from nar_scale.data.formats.npy import decode_npy
from nar_scale.data.shards import shard_index
from nar_scale.data.shards.index_file import load_shard_index
from nar_scale.data.shards.shard_scan import stamp_shard
from nar_scale.errors import DataError
from tests.data.shard_files import index_file, npy, numbered_index, write_tar
from tests.errors import refused

open_index = partial(DatasetIndex.open, pattern="shard-*.tar", progress=False)


def rows(index):
    return [decode_npy(content).tolist() for content in index.read_many(np.arange(index.num_samples), "tokens.npy")]


def write_numbers(shard, numbers):
    write_tar(shard, [(f"{number}.tokens.npy", npy(np.full(3, value))) for number, value in enumerate(numbers)])


def rewrite(shard, numbers, keep_time, in_place):
    """Write a shard of the same size, as rsync, cp -p or an editor would."""
    before = shard.stat()
    other = shard.with_name("other")
    write_numbers(other, numbers)
    if in_place:
        with open(shard, "r+b") as file:
            file.write(other.read_bytes())
    else:
        os.replace(other, shard)
    if keep_time:
        os.utime(shard, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert shard.stat().st_size == before.st_size


def as_format_3(path):
    """Rewrite an index file as it was before fields had checksums."""
    index = load_shard_index("", path)
    table = index.map_table()
    records = np.empty(index.count, [("key", f"S{index.key_bytes}"), ("spans", "<i8", (len(index.fields), 2))])
    records["key"], records["spans"] = table["key"], table["spans"][..., :2]
    header = json.loads(path.read_bytes().split(b"\n", 1)[0])
    path.write_bytes(index_file({**header, "format": "nar_scale shard index 3"}, records.tobytes()))


@pytest.mark.parametrize("memory_map", [True, False])
@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("is_open", [True, False])
def test_a_shard_of_the_same_size_and_time_is_refused_by_the_sample(tmp_path, memory_map, in_place, is_open):
    shard = tmp_path / "shard-0.tar"
    write_numbers(shard, [1, 2, 3])
    index = open_index(tmp_path, memory_map=memory_map)
    if is_open:
        index.read(0)
    rewrite(shard, [1, 5, 3], keep_time=True, in_place=in_place)
    if is_open and not in_place:
        assert rows(index) == [[1] * 3, [2] * 3, [3] * 3]  # the file that was there before is still open
        return
    for reader in (index, open_index(tmp_path, memory_map=memory_map)):
        assert decode_npy(reader.read(2)).tolist() == [3, 3, 3]
        for read in (partial(reader.read, 1), partial(rows, reader)):
            with refused(DataError, shard, "sample 1"):
                read()


@pytest.mark.parametrize("memory_map", [True, False])
@pytest.mark.parametrize("has_checksums", [True, False])
def test_a_shard_that_is_replaced_during_a_run_is_refused_when_it_is_opened(tmp_path, memory_map, has_checksums):
    shard = tmp_path / "shard-0.tar"
    write_numbers(shard, [1, 2, 3])
    index = open_index(tmp_path, memory_map=memory_map)
    if not has_checksums:
        as_format_3(tmp_path / "shard-0.tar.index")
        index = open_index(tmp_path, memory_map=memory_map)
    rewrite(shard, [4, 5, 6], keep_time=False, in_place=False)
    with refused(DataError, shard, tmp_path / "shard-0.tar.index"):
        index.read(0)


def test_a_shard_that_is_only_touched_during_a_run_is_read_on(tmp_path):
    index = numbered_index(tmp_path, [3])
    os.utime(tmp_path / "shard-000000.tar", ns=(1, 1))
    assert rows(index) == [[0, 1], [1, 2], [2, 3]]


def test_a_touched_shard_with_an_index_that_cannot_be_written_is_compared_once(tmp_path, monkeypatch):
    first = numbered_index(tmp_path, [3])
    os.utime(tmp_path / "shard-000000.tar", ns=(1, 1))
    stamped = []
    monkeypatch.setattr(shard_index, "write_shard_index", refuse_writing)
    monkeypatch.setattr(shard_index, "stamp_shard", lambda shard: (stamped.append(shard), stamp_shard(shard))[1])
    again = open_index(tmp_path)
    assert again.fingerprint == first.fingerprint
    assert rows(again) == rows(first) == [[0, 1], [1, 2], [2, 3]]
    assert len(stamped) == 2  # by `again` when it was opened, by `first` when it read


def refuse_writing(*_):
    raise DataError("read-only")


def test_an_index_of_the_earlier_format_is_read_and_gives_the_same_fingerprint(tmp_path):
    first = numbered_index(tmp_path, [3, 2])
    for path in tmp_path.glob("*.index"):
        as_format_3(path)
    before = {path: path.read_bytes() for path in tmp_path.glob("*.index")}
    again = open_index(tmp_path)
    assert again.fingerprint == first.fingerprint
    assert rows(again) == [[i, i + 1] for i in range(5)]
    assert {path: path.read_bytes() for path in tmp_path.glob("*.index")} == before
    os.utime(tmp_path / "shard-000001.tar", ns=(1, 1))  # read whole anyway, so it gets checksums
    assert open_index(tmp_path).fingerprint == first.fingerprint
    kinds = [load_shard_index("", path).has_checksums for path in sorted(tmp_path.glob("*.index"))]
    assert kinds == [False, True]


def test_an_index_of_the_earlier_format_is_made_again_where_the_rule_for_names_has_changed(tmp_path):
    shard, path = tmp_path / "shard-0.tar", tmp_path / "shard-0.tar.index"
    write_tar(shard, [(f"{number}.TOKENS.NPY", npy(np.full(3, number))) for number in range(2)])
    index_shards([str(tmp_path)], progress=False)
    as_format_3(path)
    header, records = path.read_bytes().split(b"\n", 1)
    path.write_bytes(index_file({**json.loads(header), "fields": ["TOKENS.NPY"]}, records))
    assert rows(open_index(tmp_path)) == [[0] * 3, [1] * 3]
    assert load_shard_index("", path).fields == ("tokens.npy",)


def test_a_checksum_covers_members_of_any_size(tmp_path):
    shard = tmp_path / "shard-0.tar"
    array = np.arange(1 << 18)  # 2 MiB, more than is read at once
    write_tar(shard, [("0.tokens.npy", npy(array)), ("1.tokens.npy", npy(array[:0]))])
    index = open_index(tmp_path)
    assert np.array_equal(decode_npy(index.read(0)), array)
    assert rows(index)[1] == []
    with open(shard, "r+b") as file:
        file.seek(1 << 20)
        file.write(b"\xff")
    with refused(DataError, shard, "sample 0"):
        index.read(0)
