"""Which members of a tar belong to which sample: one rule, webdataset's, for all ways of reading."""

import io
import subprocess
import tarfile

import numpy as np
import pytest
from webdataset.tariterators import group_by_keys

from nar_scale.data import DatasetIndex, SampleFormat, SequentialStream, inspect
from nar_scale.data.formats.documents import Document
from nar_scale.data.formats.tar import DamagedTarError, sample_member, tar_members
from nar_scale.data.formats.webdataset import read, split
from nar_scale.errors import DataError
from tests.data.formats.tars import END, file_member
from tests.data.shard_files import npy, write_tar
from tests.errors import refused

NAMES = ["a.npy", "a.NPY", "a/b.c/d.e.f", "./a.b", "a", "a/", ".a", "a/.b", "a.", "A.B.c", "__a.npy", "a__.npy", "É.É"]
IGNORED = ["__meta__", "__meta__/a.npy", "__index.json__", "__meta__.json", "./__meta__/a.npy"]
IGNORED += ["._a.npy", "a/._b.npy", "__MACOSX/._a.npy", "a/.DS_Store", ".DS_Store"]


@pytest.mark.parametrize("name", NAMES)
def test_key_and_field_are_those_of_webdataset(name):
    (sample,) = [*group_by_keys([{"fname": name, "data": b"", "__url__": ""}])] or [{}]
    fields = [field for field in sample if not field.startswith("__")]
    assert sample_member(name) == ((sample["__key__"], *fields) if sample else None)


@pytest.mark.parametrize("name", IGNORED)
def test_what_is_no_sample_is_ignored(name):
    assert sample_member(name) is None


def tokens_of_exact(folder, field):
    index = DatasetIndex.open(folder, "a.tar", fields=(field,), progress=False)
    sample_format = SampleFormat(3, 300, field)
    return [int(sample_format.read(index, number).tokens[0]) for number in range(index.num_samples)]


def tokens_of_sequential(folder, field):
    settings = {"seed": 0, "global_batch_size": 6, "micro_batch_size": 6, "rank": 0, "world_size": 1, "workers": 0}
    batches = SequentialStream([str(folder / "a.tar")], SampleFormat(3, 300, field), **settings)
    return [int(token) for _, batch in zip(range(50), batches) for token in batch.tokens[:, 0]]


def tokens_of_prepare(folder, field):
    (piece,) = split(folder / "a.tar", 1000)
    return [int(document.tokens[0]) for document in read(piece, field) if isinstance(document, Document)]


READERS = [tokens_of_exact, tokens_of_sequential, tokens_of_prepare]


@pytest.mark.parametrize("read_tokens", READERS)
@pytest.mark.parametrize("field", ["tok.npy", "TOK.NPY"])
def test_fields_in_letters_of_any_case_and_what_is_no_sample(tmp_path, read_tokens, field):
    members = [("__meta__/info.npy", b"no array"), ("__meta__.json", b"{}")]
    for number in range(6):
        members.append((f"{number}.{('tok.npy', 'tok.NPY', 'TOK.NPY')[number % 3]}", npy(np.full(3, number))))
        members += [(f"._{number}.tok.npy", b"\0\5\x16\7"), (f"x/._{number}.tok.npy", b""), ("x/.DS_Store", b"")]
    write_tar(tmp_path / "a.tar", members)
    assert sorted(set(read_tokens(tmp_path, field))) == list(range(6))


@pytest.mark.parametrize("read_tokens", [*READERS, lambda folder, _: inspect(folder, "a.tar", progress=False)])
def test_members_of_a_sample_that_are_not_adjacent_are_refused_with_the_remedy(tmp_path, read_tokens):
    arrays = [(f"{number}.tok.npy", npy(np.full(3, number))) for number in range(3)]
    classes = [(f"{number}.cls", b"1") for number in range(3)]
    write_tar(tmp_path / "a.tar", arrays + classes)
    with refused(DataError, tmp_path / "a.tar", "'0'", "--sort=name"):
        read_tokens(tmp_path, "tok.npy")
    write_tar(tmp_path / "a.tar", sorted(arrays + classes))
    read_tokens(tmp_path, "tok.npy")


@pytest.mark.parametrize("read_tokens", READERS)
def test_a_key_that_comes_again_with_the_same_fields_is_another_sample(tmp_path, read_tokens):
    write_tar(tmp_path / "a.tar", [(f"{number % 3}.tok.npy", npy(np.full(3, number))) for number in range(6)])
    assert sorted(set(read_tokens(tmp_path, "tok.npy"))) == list(range(6))


@pytest.mark.parametrize("factor", [20, 4096, 8192])
def test_a_tar_of_large_records_is_read(tmp_path, factor):
    (tmp_path / "0.tok.npy").write_bytes(npy(np.full(3, 7)))
    command = ["tar", f"--blocking-factor={factor}", "-cf", "a.tar", "0.tok.npy"]
    subprocess.run(command, cwd=tmp_path, check=True)
    assert (tmp_path / "a.tar").stat().st_size == 512 * factor
    for read_tokens in READERS:
        assert set(read_tokens(tmp_path, "tok.npy")) == {7}


@pytest.mark.parametrize("end", [(3 << 20) + 10240, (17 << 20)])
def test_more_zeros_than_a_record_has_are_a_part_that_is_missing(end):
    content = (file_member(b"0.txt", b"text") + END).ljust(end, b"\0")
    with pytest.raises(DamagedTarError):
        list(tar_members(io.BytesIO(content), len(content)))
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:  # which does not notice
        assert tar.getnames() == ["0.txt"]
