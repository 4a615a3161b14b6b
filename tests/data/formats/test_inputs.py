"""What holds for input files of all formats."""

import errno
import gzip
import sys
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest

from nar_scale.data.formats.documents import Piece
from nar_scale.data.formats.inputs import is_token_file, read_piece, split_into_pieces
from nar_scale.errors import DataError, UserError
from tests.data.formats.reading import COMPRESSORS, WHOLE, assert_refused, jsonl, read, texts, write
from tests.data.formats.tars import npy
from tests.data.shard_files import write_tar
from tests.errors import refused


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.jsonl.gz", "a.zst", "a.parquet", "a.tar", "a.npy", "a.npz"])
def test_a_missing_file_is_refused(tmp_path, name):
    assert_refused(tmp_path / name, "No such file", "exclude it")


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.jsonl.gz", "a.zst", "a.parquet", "a.tar", "a.npy", "a.npz"])
def test_a_file_that_vanishes_before_it_is_read_is_refused(tmp_path, name):
    with refused(DataError, tmp_path / name):
        list(read_piece(Piece(tmp_path / name, 0, 10, 10)))


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.jsonl.gz", "a.zst", "a.parquet", "a.tar", "a.npy", "a.npz"])
def test_a_file_that_cannot_be_opened_is_refused(tmp_path, name):
    (tmp_path / name).mkdir()
    with refused(DataError, tmp_path / name):
        list(read_piece(Piece(tmp_path / name, 0, 10, 10)))


def test_token_files():
    assert [is_token_file(Path(name)) for name in ("a.npy", "A.NPZ", "a.npy.gz", "npy", "a.txt", "a.tar")] == [
        True,
        True,
        False,
        False,
        False,
        False,
    ]


def documents_or_message(file):
    try:
        return read(file)
    except DataError as error:
        return str(error)


# not Parquet: there are damages by which pyarrow ends the process
@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.tar", "a.npy", "a.npz"])
def test_damage_of_any_byte_is_refused_or_harmless(tmp_path, name):
    lines = jsonl(["a", "ä"])
    content = {
        "a.jsonl": lines,
        "a.jsonl.gz": gzip.compress(lines),
        "a.jsonl.zst": COMPRESSORS[".zst"](lines),
        "a.npy": npy(np.arange(6).reshape(2, 3)),
    }.get(name)
    if name == "a.tar":
        content = write_tar(tmp_path / name, [("0.tokens.npy", npy(np.arange(6)))]).read_bytes()[:1536]
    if name == "a.npz":
        np.savez(tmp_path / name, x=np.arange(6))
        content = (tmp_path / name).read_bytes()
    for position, damage in zip(range(len(content)), cycle([b"\xff", b"\0", b"(", b"9", b"\n"])):
        write(tmp_path / name, content[:position] + damage + content[position + 1 :])
        outcome = documents_or_message(tmp_path / name)
        assert len(outcome) <= 2 or (name in outcome and "\n" not in outcome)


@pytest.mark.parametrize(("name", "package"), [("a.parquet", "pyarrow"), ("a.jsonl.zst", "zstandard")])
def test_a_missing_package_is_named(tmp_path, monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    file = write(tmp_path / name, b"content")
    assert_refused(file, package, "pip install 'nar_scale[inputs]'", error=UserError)
    assert texts(read(write(tmp_path / "a.jsonl", jsonl(["a"])))) == [b"a"]


def test_what_the_reader_of_documents_raises_is_left_alone(tmp_path):
    file = write(tmp_path / "a.jsonl", jsonl(["a", "b"]))

    def use():
        for _ in read_piece(split_into_pieces(file, WHOLE)[0]):
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError) as raised:  # noqa: PT011
        use()
    assert raised.value.errno == errno.ENOSPC
