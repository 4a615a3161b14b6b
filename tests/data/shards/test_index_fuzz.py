"""Damaged and hostile index files."""

import itertools
import json
import os
import tarfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nar_scale.data import DatasetIndex
from nar_scale.errors import DataError
from tests.data.formats.tars import whole_tar
from tests.data.fuzzing import FORMAT, MIB, any_mutation, bounded, check_message, fuzz, in_child, mutations, read_all
from tests.data.shard_files import index_file

pytestmark = pytest.mark.usefixtures("no_waiting")

INDEX_SHARD = whole_tar(tarfile.USTAR_FORMAT, [str(number) for number in range(6)])


JSON_VALUES = [
    None,
    True,
    False,
    0,
    1,
    -1,
    6,
    7,
    255,
    256,
    257,
    2**31,
    2**63,
    2**70,
    1.0,
    6.0,
    1e308,
    "",
    "6",
    "1,f8",
    "\x1b[2J",
    "nar_scale shard index 3",
]


JSON_VALUES += [
    "../../x",
    "a" * 32,
    "A" * 32,
    "f" * 32,
    "g" * 32,
    [],
    {},
    [[]],
    ["tokens.npy"],
    ["cls"],
    {"cls": 1},
    [1],
]


JSON_VALUES += [{"x": -1}, ["tokens.npy"] * 3, ["documents.npy", "cls", "tokens.npy"], "abc", ["a"] * 70, 10**400]


@pytest.fixture(scope="module")
def indexed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("indexed")
    (folder / "shard.tar").write_bytes(INDEX_SHARD)
    rows = read_all(DatasetIndex.open(folder, "*.tar", FORMAT.fields, progress=False))
    return folder, (folder / "shard.tar.index").read_bytes(), rows


def check_index(indexed, content):
    folder, _, expected = indexed
    sidecar = folder / "shard.tar.index"
    for memory_map in (True, False):
        with bounded(len(content), factor=64):
            sidecar.write_bytes(content)
            try:
                index = DatasetIndex.open(folder, "*.tar", FORMAT.fields, progress=False, memory_map=memory_map)
                rows = read_all(index)
                [check_message(index.name(number)) for number in range(index.num_samples)]
            except DataError as error:
                check_message(error)
                continue
        assert rows == expected


@given(content=st.binary(max_size=2000))
@fuzz(40)
def test_random_bytes_are_no_index(indexed, content):
    check_index(indexed, content)


@given(data=st.data())
@fuzz(100)
def test_an_index_with_other_values_is_made_again_or_refused(indexed, data):
    line, table = indexed[1].split(b"\n", 1)
    header = json.loads(line)
    changes = data.draw(
        st.dictionaries(
            st.sampled_from(
                ["format", "count", "key_bytes", "fields", "incomplete", "damage", "shard", "header_bytes"]
            ),
            st.sampled_from(JSON_VALUES),
            max_size=2,
        )
    )
    stamp = data.draw(
        st.dictionaries(
            st.sampled_from(["size", "mtime_ns", "digest", "more"]), st.sampled_from(JSON_VALUES), max_size=1
        )
    )
    header.update(changes)
    header["stamp"] = data.draw(st.sampled_from([{**header["stamp"], **stamp}] * 8 + JSON_VALUES))
    for key in data.draw(st.sets(st.sampled_from(sorted(header)), max_size=1)) if not changes else ():
        del header[key]
    table = data.draw(st.sampled_from([table, table, table, b"", table[:-1], table + b"\0", table * 2]))
    check_index(indexed, index_file(header, table))


@given(data=st.data())
@fuzz(100)
def test_a_mutated_index_does_no_harm(indexed, data):
    changed = data.draw(mutations(*any_mutation)(st.just(indexed[1])))
    check_index(indexed, changed)


@given(
    changes=st.lists(st.tuples(st.integers(0, len(INDEX_SHARD) - 1), st.integers(1, 255)), min_size=1, max_size=3),
    memory_map=st.booleans(),
)
@fuzz(100)
def test_a_shard_that_is_changed_with_its_time_restored_is_never_read_wrongly(indexed, changes, memory_map):
    folder, content, expected = indexed
    shard = folder / "shard.tar"
    time = shard.stat().st_mtime_ns
    (folder / "shard.tar.index").write_bytes(content)
    changed = bytearray(INDEX_SHARD)
    for place, mask in changes:
        changed[place] ^= mask
    try:
        shard.write_bytes(changed)
        os.utime(shard, ns=(time, time))
        index = DatasetIndex.open(folder, "*.tar", FORMAT.fields, progress=False, memory_map=memory_map)
        assert read_all(index) == expected  # what was changed is not read: a header, or padding
    except DataError as error:
        check_message(error)
    finally:
        shard.write_bytes(INDEX_SHARD)
        os.utime(shard, ns=(time, time))


OFFSETS = [0, 1, -1, -2, -3, 512, 1024, len(INDEX_SHARD) - 1, len(INDEX_SHARD), len(INDEX_SHARD) + 1, 2**31, 2**62]


FAR = [0, 5000, len(INDEX_SHARD), 2**63 - 1, -(2**63)]


OFFSETS += [2**63 - 1, -(2**63), -(2**62), -len(INDEX_SHARD)]


@given(
    changes=st.lists(
        st.tuples(st.integers(0, 5), st.integers(0, 2), st.integers(0, 2), st.sampled_from(OFFSETS)),
        min_size=1,
        max_size=3,
    )
)
@fuzz(100)
def test_an_index_that_leads_out_of_its_shard_is_refused(indexed, changes):
    folder, content, _ = indexed
    index = DatasetIndex.open(folder, "*.tar", FORMAT.fields, progress=False)
    del index
    line, table = content.split(b"\n", 1)
    fields = len(json.loads(line)["fields"])
    records = np.frombuffer(table, [("key", "S1"), ("places", "<i8", (fields, 3))]).copy()
    for row, column, part, value in changes:
        records["places"][row, column, part] = value
    check_index(indexed, index_file(json.loads(line), records.tobytes()))


@pytest.mark.parametrize("memory_map", [True, False])
@pytest.mark.parametrize("place", list(itertools.product(FAR, [-1, -5000, 2**40, 2**63 - 1])))
def test_no_bytes_come_from_outside_a_shard(indexed, place, memory_map):
    folder, content, _ = indexed
    line, table = content.split(b"\n", 1)
    fields = len(json.loads(line)["fields"])
    records = np.frombuffer(table, [("key", "S1"), ("places", "<i8", (fields, 3))]).copy()
    records["places"][3, :, :2] = place
    (folder / "shard.tar.index").write_bytes(index_file(json.loads(line), records.tobytes()))

    def work():
        index = DatasetIndex.open(folder, "*.tar", FORMAT.fields, progress=False, memory_map=memory_map)
        with pytest.raises(DataError) as raised:
            index.read(3, "cls")
        check_message(raised.value)
        with pytest.raises(DataError):
            index.read_many(np.arange(6), "cls")
        return "done"

    assert in_child(work, memory=256 * MIB) == "done"
