from itertools import chain

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from nar_scale.data.formats.inputs import read_piece, split_into_pieces
from nar_scale.errors import DataError
from tests.data.formats.reading import WHOLE, assert_refused, read, reasons, texts, write


def write_parquet(path, columns, row_group_size=10, **options):
    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=row_group_size, **options)
    return path


def test_parquet_is_cut_at_row_groups(tmp_path):
    documents = [f"document {i} ä" * (i % 7 + 1) for i in range(95)]
    file = write_parquet(tmp_path / "a.PARQUET", {"id": range(95), "text": documents})
    expected = [text.encode() for text in documents]
    by_count = {}
    for piece_bytes in (1, 300, 1000, WHOLE):
        pieces = split_into_pieces(file, piece_bytes)
        assert [piece.start for piece in pieces] == [0, *(piece.end for piece in pieces[:-1])]
        assert pieces[-1].end == 10
        sources = [list(read_piece(piece)) for piece in pieces]
        assert texts(chain.from_iterable(sources)) == expected
        assert [sum(source.size for source in part) for part in sources] == [piece.size for piece in pieces]
        by_count[len(pieces)] = sum(piece.size for piece in pieces)
    assert {1, 10} < set(by_count)
    assert len(set(by_count.values())) == 1
    assert by_count[1] == file.stat().st_size


@pytest.mark.parametrize(
    "kind",
    [
        pyarrow.string(),
        pyarrow.large_string(),
        pyarrow.string_view(),
        pyarrow.binary(),
        pyarrow.large_binary(),
        pyarrow.dictionary(pyarrow.int32(), pyarrow.string()),
    ],
    ids=str,
)
def test_the_types_of_text_in_parquet(tmp_path, kind):
    values = ["one", None, "", "zwölf", "one"] * 50
    column = pyarrow.array(values).cast(kind) if "view" not in str(kind) else pyarrow.array(values, kind)
    file = write_parquet(tmp_path / "a.parquet", {"a.b": column}, row_group_size=100)
    sources = read(file, 1, text_field="a.b")
    assert texts(sources) == [b"one", "zwölf".encode(), b"one"] * 50
    assert reasons(sources) == ["no text", "empty"] * 50
    assert len(sources) == 250


def test_binary_in_parquet(tmp_path):
    file = write_parquet(tmp_path / "a.parquet", {"text": ["a\0"], "raw": [b"a\0"]})
    assert texts(read(file)) == [b"a\0"]
    assert reasons(read(file, text_field="raw")) == ["binary"]


def test_parquet_without_rows(tmp_path):
    assert read(write_parquet(tmp_path / "a.parquet", {"text": pyarrow.array([], pyarrow.string())})) == []


def test_a_wrong_column_of_parquet_is_refused(tmp_path):
    file = write_parquet(tmp_path / "a.parquet", {"id": [1], "content": ["a"], "nested": [{"text": "a"}]})
    assert_refused(file, "no column 'text', only 'id', 'content', 'nested'")
    assert_refused(file, "no column 'nested.text'", text_field="nested.text")
    assert_refused(file, "column 'id' is int64, not text", text_field="id")
    assert_refused(file, "not text", text_field="nested")


def test_damaged_parquet_is_refused(tmp_path):
    file = write_parquet(tmp_path / "a.parquet", {"text": [f"document {i}" for i in range(100)]}, compression="gzip")
    content = file.read_bytes()
    pieces = split_into_pieces(file, 1)
    for damaged in (b"", b"text", content[:-1], content[:100] + content[150:], content[: len(content) // 2]):
        assert_refused(write(file, damaged), "truncated or damaged")
    middle = bytearray(content)
    middle[20:60] = bytes(40)
    assert_refused(write(file, middle), "truncated or damaged")
    write_parquet(file, {"text": ["fewer"]})
    with pytest.raises(DataError):
        list(read_piece(pieces[-1]))


def test_parquet_is_read_in_batches(tmp_path):
    rng = np.random.default_rng(0)
    documents = [rng.integers(1, 128, 10_000, dtype=np.uint8).tobytes().decode() for _ in range(4000)]
    file = write_parquet(tmp_path / "a.parquet", {"text": documents}, 4000, use_dictionary=False, compression="none")
    del documents
    (piece,) = split_into_pieces(file, 1)
    before = pyarrow.total_allocated_bytes()
    most, count = 0, 0
    for _ in read_piece(piece):
        count += 1
        most = max(most, pyarrow.total_allocated_bytes() - before)
    assert count == 4000
    assert most < 20_000_000  # of 40 MB; a page is 10 MB
