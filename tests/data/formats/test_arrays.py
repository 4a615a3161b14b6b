"""Arrays of tokens, in files of their own and in archives."""

import os

import numpy as np
import pytest

from nar_scale.data.formats.documents import Piece
from nar_scale.data.formats.inputs import read_piece, split_into_pieces
from nar_scale.errors import DataError
from tests.data.formats.reading import WHOLE, assert_refused, memory_peak, read, reasons, save, tokens, write
from tests.data.formats.tars import npy
from tests.errors import refused


@pytest.mark.parametrize("dtype", ["u1", "<u2", ">i4", "i8", "u8"])
def test_one_dimension_is_one_document(tmp_path, dtype):
    file = save(tmp_path / "a.npy", np.arange(100, dtype=dtype))
    assert split_into_pieces(file, 10) == [Piece(file, 0, 1, 100 * np.dtype(dtype).itemsize)]
    (source,) = read(file)
    assert source.text is None
    assert source.tokens.tolist() == list(range(100))
    assert source.size == 100 * np.dtype(dtype).itemsize


@pytest.mark.parametrize("shape", [(7, 12), (7, 3, 4), (7, 2, 3, 2), (7, 12, 1)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_rows_are_documents(tmp_path, shape, order):
    array = np.arange(84, dtype=np.int32).reshape(shape)
    (tmp_path / "a.NPY").write_bytes(npy(np.asarray(array, order=order)))
    for piece_bytes, starts in ((1, range(7)), (100, [0, 2, 4, 6]), (WHOLE, [0])):
        pieces = split_into_pieces(tmp_path / "a.NPY", piece_bytes)
        assert [piece.start for piece in pieces] == list(starts)
        assert sum(piece.size for piece in pieces) == 84 * 4
        assert tokens(read(tmp_path / "a.NPY", piece_bytes)) == array.reshape(7, 12).tolist()


def test_a_long_array_is_not_read_into_memory(tmp_path):
    file = save(tmp_path / "a.npy", np.arange(5_000_000, dtype=np.uint32).reshape(500, -1))
    peak, documents = memory_peak(file)
    assert documents == 500
    assert peak < 1_000_000  # of 20 MB
    file = save(tmp_path / "a.npy", np.arange(5_000_000, dtype=np.int32))
    assert memory_peak(file)[0] < 1_000_000


def test_arrays_without_tokens(tmp_path):
    assert reasons(read(save(tmp_path / "a.npy", np.zeros(0, int)))) == ["empty"]
    assert reasons(read(save(tmp_path / "a.npy", np.zeros((3, 0), int)))) == ["empty"] * 3
    assert read(save(tmp_path / "a.npy", np.zeros((0, 3), int))) == []


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros((2, 3)), "holds float64, not integer tokens"),
        (np.zeros(3, bool), "holds bool"),
        (np.array(["text"]), "holds <U4"),
        (np.zeros(3, [("a", int)]), "not integer tokens"),
        (np.array(3), "a single number"),
        (np.array([1, -2]), "row 0: token -2 is negative"),
        (np.array([[1, 2], [3, -4]]), "row 1: token -4 is negative"),
    ],
)
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_arrays_that_are_no_tokens_are_refused(tmp_path, array, reason, suffix):
    file = tmp_path / f"a{suffix}"
    if suffix == ".npy":
        np.save(file, array)
    else:
        np.savez(file, tokens=array)
    assert_refused(file, reason)


class Exploit:
    def __reduce__(self):
        return os.abort, ()


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_pickles_are_never_opened(tmp_path, suffix):
    file = tmp_path / f"a{suffix}"
    array = np.array([Exploit()], dtype=object)
    if suffix == ".npy":
        np.save(file, array)
    else:
        np.savez(file, tokens=array)
    assert_refused(file, "bject")
    import pickle

    assert_refused(write(file, pickle.dumps(Exploit())), "truncated or damaged")


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_damaged_arrays_are_refused(tmp_path, suffix):
    file = tmp_path / f"a{suffix}"
    if suffix == ".npy":
        np.save(file, np.arange(1000))
    else:
        np.savez_compressed(file, tokens=np.arange(1000))
    content = file.read_bytes()
    for damaged in (b"", b"text", content[:5], content[:60], content[:-1]):
        assert_refused(write(file, damaged), "truncated or damaged")
    if suffix == ".npz":
        middle = bytearray(content)
        middle[len(content) // 2] ^= 255
        assert_refused(write(file, middle), "truncated or damaged")


def test_an_array_that_shrank_is_refused(tmp_path):
    file = save(tmp_path / "a.npy", np.zeros((10, 2), int))
    pieces = split_into_pieces(file, 16)
    save(file, np.zeros((5, 2), int))
    with refused(DataError, file, 5):
        list(read_piece(pieces[-1]))
