import pytest

from nar_scale.data.formats.documents import Document, Piece, SkippedDocument
from nar_scale.data.formats.inputs import split_into_pieces
from tests.data.formats.reading import read, texts, write


@pytest.mark.parametrize("name", ["notes.txt", "program.PY", "README", "a.toml", "jsonl"])
def test_any_other_file_is_one_document(tmp_path, name):
    file = write(tmp_path / name, "Grüße\r\n{}\n".encode())
    assert split_into_pieces(file, 1) == [Piece(file, 0, 12, 12)]
    assert read(file) == [Document("Grüße\r\n{}\n".encode(), None, 12)]


def test_bytes_that_are_not_text_are_kept_as_they_are(tmp_path):
    content = bytes(range(1, 256))
    assert texts(read(write(tmp_path / "latin1.txt", content))) == [content]


def test_empty_and_binary_files_are_skipped(tmp_path):
    assert read(write(tmp_path / "empty.txt", b"")) == [SkippedDocument(0, "empty")]
    assert read(write(tmp_path / "program", b"ELF\0")) == [SkippedDocument(4, "binary")]
    late = bytes([1]) * 3_000_000 + b"\0"
    assert read(write(tmp_path / "late", late)) == [SkippedDocument(3_000_001, "binary")]
