import errno
import io
import os
import pickle
import tarfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import numpy as np
import pytest
import webdataset

from nar_scale.data import DatasetIndex
from nar_scale.data.formats.npy import decode_npy
from nar_scale.errors import DataError
from tests.data.shard_files import numbered_index, write_samples
from tests.errors import refused

open_index = partial(DatasetIndex.open, pattern="shard-*.tar", progress=False)


def rows(index, field="tokens.npy"):
    return [decode_npy(content).tolist() for content in index.read_many(np.arange(index.num_samples), field)]


def row(index, sample):
    return decode_npy(index.read(sample)).tolist()


def test_samples_are_numbered_through(tmp_path):
    index = numbered_index(tmp_path, [3, 1, 5])
    assert [index.shard(i) for i in range(index.num_shards)] == [f"{tmp_path}/shard-{i:06d}.tar" for i in range(3)]
    assert index.counts.tolist() == [3, 1, 5]
    assert index.counts.dtype == np.int64
    assert index.num_samples == 9
    assert rows(index) == [[i, i + 1] for i in range(9)]
    assert [row(index, sample) for sample in (8, 0, 3)] == [[8, 9], [0, 1], [3, 4]]
    assert index.name(4) == f"shard {tmp_path}/shard-000002.tar, sample 000000004"
    for outside in (-1, 9):
        with pytest.raises(IndexError):
            index.read(outside)


def test_reopening_reads_the_index_file(tmp_path):
    first = numbered_index(tmp_path, [3, 1])
    assert sorted(path.name for path in tmp_path.glob("*.index")) == [f"shard-00000{i}.tar.index" for i in range(2)]
    built = [path.stat().st_mtime_ns for path in sorted(tmp_path.glob("*.index"))]
    again = open_index(tmp_path)
    assert [path.stat().st_mtime_ns for path in sorted(tmp_path.glob("*.index"))] == built
    assert again.fingerprint == first.fingerprint
    assert rows(again) == rows(first)


def test_foreign_shards_with_other_fields_and_folders(tmp_path):
    with webdataset.TarWriter(str(tmp_path / "shard-0.tar")) as writer:
        for i in range(4):
            key = f"some/folder.d/{'long' * 40 if i == 2 else ''}item{i}"  # a long name needs a pax header
            writer.write({"__key__": key, "json": {"i": i}, "ids.npy": np.full(i + 1, i, dtype=np.int32), "txt": "ä"})
    index = open_index(tmp_path, fields=["ids.npy"])
    assert rows(index, "ids.npy") == [[0], [1, 1], [2, 2, 2], [3, 3, 3, 3]]
    assert index.name(1).endswith("sample some/folder.d/item1")


def test_gnu_tar_with_folders_and_2d_arrays(tmp_path):
    content = io.BytesIO()
    np.save(content, np.asfortranarray(np.arange(6).reshape(2, 3)))
    with tarfile.open(tmp_path / "shard-0.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        tar.addfile(tarfile.TarInfo("README"))
        member = tarfile.TarInfo("folder/" + "k" * 150 + ".tokens.npy")
        member.size = len(content.getvalue())
        tar.addfile(member, io.BytesIO(content.getvalue()))
    index = open_index(tmp_path)
    assert rows(index) == [[[0, 1, 2], [3, 4, 5]]]


def test_fingerprint_follows_the_content(tmp_path):
    prints = set()
    for name, values in {"a": [1, 2], "same": [1, 2], "other": [1, 3], "more": [1, 2, 3]}.items():
        (tmp_path / name).mkdir()
        with webdataset.TarWriter(str(tmp_path / name / "shard-0.tar"), mtime=0) as writer:
            for i, value in enumerate(values):
                writer.write({"__key__": str(i), "tokens.npy": np.array([value])})
        prints.add(open_index(tmp_path / name).fingerprint)
    assert len(prints) == 3
    os.rename(tmp_path / "a" / "shard-0.tar", tmp_path / "a" / "shard-1.tar")
    assert open_index(tmp_path / "a").fingerprint not in prints


def test_lists_and_braces(tmp_path):
    numbered_index(tmp_path, [2, 3, 4, 5])
    by_list = DatasetIndex.open(tmp_path, ["shard-000003.tar", "shard-00000[12].tar"], progress=False)
    assert by_list.counts.tolist() == [3, 4, 5]
    by_braces = DatasetIndex.open(tmp_path, "shard-{000001..000003}.tar", progress=False)
    assert by_braces.fingerprint == by_list.fingerprint
    by_absolute_name = DatasetIndex.open(tmp_path / "elsewhere", str(tmp_path / "shard-000000.tar"), progress=False)
    assert rows(by_absolute_name) == [[0, 1], [1, 2]]


def test_index_directory(tmp_path):
    shards, cache = tmp_path / "shards", tmp_path / "new" / "cache"
    (shards / "a").mkdir(parents=True)
    (shards / "b").mkdir()
    write_samples(shards / "a" / "x.tar", [np.array([1])])
    write_samples(shards / "b" / "x.tar", [np.array([2])])
    for _ in range(2):
        index = DatasetIndex.open(shards, "*/x.tar", index_directory=cache, progress=False)
        assert rows(index) == [[1], [2]]
    assert len(list(cache.iterdir())) == 2
    assert list(shards.rglob("*.index")) == []
    (tmp_path / "file").write_text("")
    with refused(DataError, tmp_path / "file", "data.index_directory", "--index-directory"):
        DatasetIndex.open(shards, "*/x.tar", index_directory=tmp_path / "file", progress=False)


def test_building_at_once_is_safe(tmp_path):
    for number in range(4):
        write_samples(tmp_path / f"shard-{number}.tar", [np.array([number])] * 20)
    with ProcessPoolExecutor(3) as pool:
        prints = {index.fingerprint for index in pool.map(open_index, [tmp_path] * 6)}
    assert len(prints) == 1
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".index"] * 4 + [".tar"] * 4


def test_an_index_travels_to_other_processes(tmp_path):
    index = numbered_index(tmp_path, [3, 2])
    expected = rows(index)
    assert rows(pickle.loads(pickle.dumps(index))) == expected


def test_more_shards_than_are_kept_open(tmp_path, monkeypatch):
    closed = []
    close = os.close
    numbered_index(tmp_path, [1] * 5)
    index = open_index(tmp_path, max_open_shards=3)
    monkeypatch.setattr(os, "close", lambda descriptor: (closed.append(descriptor), close(descriptor)))
    for _ in range(2):
        assert rows(index) == [[i, i + 1] for i in range(5)]
    assert len(closed) == 10 - 3


def test_no_shard(tmp_path):
    with refused(DataError, tmp_path, "shard-*.tar"):
        open_index(tmp_path)


def test_missing_listed_shard(tmp_path):
    write_samples(tmp_path / "shard-0.tar", [np.array([1])])
    for pattern in (["shard-0.tar", "shard-1.tar"], "shard-{0..1}.tar"):
        with refused(DataError, tmp_path, "shard-1.tar"):
            DatasetIndex.open(tmp_path, pattern, progress=False)


@pytest.mark.parametrize("kept", [0, 100, 512, 700, 1024, 1500, 2048, 2049, 2600, 3072])
def test_truncated_shard(tmp_path, kept):
    shard = tmp_path / "shard-0.tar"
    with tarfile.open(shard, "w", format=tarfile.USTAR_FORMAT) as tar:  # three samples of 1024 bytes, then zeros
        for i in range(3):
            member = tarfile.TarInfo(f"{i}.tokens.npy")
            member.size = 512
            tar.addfile(member, io.BytesIO(b"x" * 512))
    os.truncate(shard, kept)
    with refused(DataError, shard, *([kept] if kept > 1024 else [])):  # before, it may be no tar at all
        open_index(tmp_path)
    assert list(tmp_path.glob("*.index")) == []


def test_damaged_header(tmp_path):
    shard = tmp_path / "shard-0.tar"
    write_samples(shard, [np.array([1])] * 3)  # with pax headers, as webdataset writes them
    whole = shard.read_bytes()
    shard.write_bytes(whole.replace(b"000000002.tokens.npy", b"?" * 20))
    with refused(DataError, shard):
        open_index(tmp_path)
    with webdataset.TarWriter(str(shard), mtime=0) as writer:
        for key in "abc":
            writer.write({"__key__": key, "tokens.npy": np.array([1])})
    shard.write_bytes(shard.read_bytes().replace(b"c.tokens.npy", b"?" * 12))
    with refused(DataError, shard, 2048):
        open_index(tmp_path)


def test_not_a_tar(tmp_path):
    (tmp_path / "shard-0.tar").write_bytes(b"hello" * 1000)
    with refused(DataError, tmp_path / "shard-0.tar"):
        open_index(tmp_path)


def test_changed_shard(tmp_path):
    numbered_index(tmp_path, [3, 3])
    shard = tmp_path / "shard-000001.tar"
    status = shard.stat()
    content = shard.read_bytes()
    shard.write_bytes(content.replace(b"000000005", b"000000009"))
    with refused(DataError, shard, f"{shard}.index"):
        open_index(tmp_path)
    shard.write_bytes(content + b"\0" * 512)
    with refused(DataError, shard, f"{shard}.index", status.st_size, status.st_size + 512):
        open_index(tmp_path)
    (tmp_path / "shard-000001.tar.index").unlink()  # the remedy that the message names
    assert open_index(tmp_path).num_samples == 6


def test_touched_shard_is_accepted_and_noted(tmp_path):
    first = numbered_index(tmp_path, [3])
    os.utime(tmp_path / "shard-000000.tar", ns=(1, 1))
    again = open_index(tmp_path)
    assert again.fingerprint == first.fingerprint
    assert rows(again) == rows(first)
    noted = (tmp_path / "shard-000000.tar.index").stat().st_mtime_ns
    open_index(tmp_path)
    assert (tmp_path / "shard-000000.tar.index").stat().st_mtime_ns == noted


def test_missing_field(tmp_path):
    with webdataset.TarWriter(str(tmp_path / "shard-0.tar")) as writer:
        writer.write({"__key__": "first", "txt": "hello", "ids.npy": np.array([1])})
    with refused(DataError, tmp_path / "shard-0.tar", "first", "'tokens.npy'", "ids.npy", "txt"):
        open_index(tmp_path)
    assert rows(open_index(tmp_path, fields=["ids.npy"]), "ids.npy") == [[1]]


def test_a_later_sample_without_the_field(tmp_path):
    with webdataset.TarWriter(str(tmp_path / "shard-0.tar")) as writer:
        writer.write({"__key__": "first", "tokens.npy": np.array([1])})
        writer.write({"__key__": "second", "txt": "hello"})
    with refused(DataError, tmp_path / "shard-0.tar", "second", "'tokens.npy'", "txt"):
        open_index(tmp_path)


def test_field_given_twice(tmp_path):
    with webdataset.TarWriter(str(tmp_path / "shard-0.tar")) as writer:
        writer.write({"__key__": "first", "tokens.npy": np.array([1])})
        writer.write({"__key__": "first", "tokens.npy": np.array([2])})
    with refused(DataError, tmp_path / "shard-0.tar", "first", "'tokens.npy'", "twice"):
        open_index(tmp_path)


def test_shards_without_samples(tmp_path):
    write_samples(tmp_path / "shard-0.tar", [])
    with refused(DataError, tmp_path, 1, "shard-*.tar"):
        open_index(tmp_path)
    write_samples(tmp_path / "shard-1.tar", [np.array([7])])
    assert rows(open_index(tmp_path)) == [[7]]


@pytest.mark.parametrize("memory_map", [True, False])
def test_shard_cut_while_in_use(tmp_path, memory_map):
    numbered_index(tmp_path, [3])
    index = open_index(tmp_path, memory_map=memory_map)
    index.read(0)
    os.truncate(tmp_path / "shard-000000.tar", 600)
    with refused(DataError, tmp_path / "shard-000000.tar", "000000002"):
        index.read(2)


def test_shard_removed_while_in_use(tmp_path):
    index = numbered_index(tmp_path, [3])
    (tmp_path / "shard-000000.tar").unlink()
    with refused(DataError, tmp_path / "shard-000000.tar", os.strerror(errno.ENOENT)):
        index.read(0)


def test_shards_replaced_while_in_use(tmp_path):
    index = numbered_index(tmp_path, [3])
    (tmp_path / "shard-000000.tar.index").unlink()
    numbered_index(tmp_path, [4])
    with refused(DataError, tmp_path / "shard-000000.tar"):
        index.read(0)


def test_an_index_file_that_goes_away_is_made_again(tmp_path):
    index = numbered_index(tmp_path, [3])
    (tmp_path / "shard-000000.tar.index").unlink()
    assert rows(index) == [[0, 1], [1, 2], [2, 3]]
    assert (tmp_path / "shard-000000.tar.index").exists()


def test_one_index_file_serves_all_fields(tmp_path):
    with webdataset.TarWriter(str(tmp_path / "shard-0.tar")) as writer:
        writer.write({"__key__": "k", "ids.npy": np.array([1]), "tokens.npy": np.array([2])})
    index = open_index(tmp_path, fields=["tokens.npy", "ids.npy"])
    assert (rows(index), rows(index, "ids.npy")) == ([[2]], [[1]])
    assert [path.name for path in tmp_path.glob("*.index")] == ["shard-0.tar.index"]


def test_a_build_that_is_killed_goes_on_where_it_was(tmp_path, monkeypatch):
    for number in range(4):
        write_samples(tmp_path / f"shard-{number}.tar", [np.array([number])] * 3)
    (tmp_path / "shard-3.tar").write_bytes((tmp_path / "shard-3.tar").read_bytes()[:1000])
    with refused(DataError, tmp_path / "shard-3.tar"):
        open_index(tmp_path)
    built = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.index")}
    assert len(built) == 3
    write_samples(tmp_path / "shard-3.tar", [np.array([3])] * 3)
    assert open_index(tmp_path).num_samples == 12
    assert {path: path.stat().st_mtime_ns for path in built} == built


def test_a_passing_read_error_is_retried(tmp_path, monkeypatch):
    numbered_index(tmp_path, [2])
    index = open_index(tmp_path, memory_map=False)
    failures = iter([OSError(5, "Input/output error")])
    real = os.pread

    def pread(*arguments):
        for failure in failures:
            raise failure
        return real(*arguments)

    monkeypatch.setattr(os, "pread", pread)
    monkeypatch.setattr("nar_scale.data.shards.shard_reader.RETRY_WAITS", (0, 0))
    assert rows(index) == [[0, 1], [1, 2]]
    failures = iter([OSError(5, "Input/output error")] * 3)
    with refused(DataError, tmp_path / "shard-000000.tar", "000000001", "Input/output error"):
        index.read(1)


@pytest.mark.parametrize("content", [b"", b"not an index", b'{"format": 1}\n', b"\xff\xfe\n"])
def test_a_file_that_is_no_index_is_made_again(tmp_path, content):
    first = numbered_index(tmp_path, [3])
    path = tmp_path / "shard-000000.tar.index"
    path.write_bytes(content or path.read_bytes()[:-1])
    again = open_index(tmp_path)
    assert again.fingerprint == first.fingerprint
    assert rows(again) == [[0, 1], [1, 2], [2, 3]]


def test_no_flipped_bit_of_an_index_goes_unnoticed(tmp_path):
    numbered_index(tmp_path, [3])
    path = tmp_path / "shard-000000.tar.index"
    content = path.read_bytes()
    records = content.index(b"\n") + 1
    for place in [*range(0, records, 7), *range(records, len(content))]:
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        if place < records:  # the line: it is made again
            assert rows(open_index(tmp_path)) == [[0, 1], [1, 2], [2, 3]]
        else:
            with refused(DataError, path):
                rows(open_index(tmp_path))


def test_a_damaged_index_beside_a_shard_is_not_taken_for_one_kept_elsewhere(tmp_path):
    numbered_index(tmp_path, [3])
    path = tmp_path / "shard-000000.tar.index"
    whole = path.read_bytes()
    records = whole.index(b"\n") + 1
    for place in (5, records, len(whole) - 3):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        assert rows(open_index(tmp_path, index_directory=tmp_path / str(place))) == [[0, 1], [1, 2], [2, 3]]
    path.write_bytes(whole)
    open_index(tmp_path, index_directory=tmp_path / "copied")
    (copy,) = (tmp_path / "copied").iterdir()
    assert copy.read_bytes() == whole


def test_shards_of_which_nothing_is_whole_are_named(tmp_path):
    (tmp_path / "shard-0.tar").write_bytes(b"no tar" * 100)
    with refused(DataError, tmp_path / "shard-0.tar"):
        open_index(tmp_path, skip_faults=True)
