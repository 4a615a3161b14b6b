import json
from itertools import chain

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nar_scale.data.formats.documents import Document, Piece, SkippedDocument
from nar_scale.data.formats.inputs import read_piece, split_into_pieces
from nar_scale.errors import DataError
from tests.data.formats.reading import COMPRESSORS, assert_refused, jsonl, lines_of, read, texts, write
from tests.errors import refused

texts_of_lines = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)


line = st.tuples(
    st.one_of(
        st.builds(lambda text: json.dumps({"text": text}), texts_of_lines),
        st.builds(lambda text: json.dumps({"id": 1, "text": text}, ensure_ascii=False), texts_of_lines),
        st.sampled_from(["", " ", "\t"]),
    ),
    st.sampled_from(["\n", "\r\n"]),
)


@settings(max_examples=150, deadline=None)
@given(lines=st.lists(line, max_size=8), final_newline=st.booleans(), piece_bytes=st.integers(1, 200))
def test_any_split_of_lines_gives_the_same_documents(tmp_path_factory, lines, final_newline, piece_bytes):
    content = "".join(text + end for text, end in lines).encode()
    content = content if final_newline else content.removesuffix(b"\n")
    file = write(tmp_path_factory.getbasetemp() / "any.jsonl", content)
    pieces = split_into_pieces(file, piece_bytes)
    assert [piece.start for piece in pieces] == [0, *(piece.end for piece in pieces)][:-1][: len(pieces)]
    assert sum(piece.size for piece in pieces) == len(content)
    read_backwards = [list(read_piece(piece)) for piece in reversed(pieces)][::-1]
    assert texts(chain.from_iterable(read_backwards)) == lines_of(content)


def test_every_cut_through_every_byte(tmp_path):
    lines = [b'{"text": "a\xc3\xa4\xf0\x9f\x98\x80"}', b"", b'{"text": "' + b"long" * 30 + b'"}\r', b'{"text":"z"}']
    for ending in (b"", b"\n", b"\n\n"):
        content = b"\n".join(lines) + ending
        file = write(tmp_path / "a.jsonl", content)
        whole = read(file)
        assert texts(whole) == lines_of(content)
        for cut in range(len(content) + 1):
            parts = [Piece(file, 0, cut, cut), Piece(file, cut, len(content), 0)]
            assert [source for part in parts for source in read_piece(part)] == whole
        for piece_bytes in range(1, len(content) + 2):
            assert read(file, piece_bytes) == whole


def test_a_line_longer_than_many_buffers_is_read_once(tmp_path):
    documents = ["a", "b" * 3_000_000, "c"]
    file = write(tmp_path / "long.ndjson", jsonl(documents))
    assert texts(read(file, 400_000)) == [text.encode() for text in documents]


def test_a_line_takes_its_own_bytes(tmp_path):
    file = write(tmp_path / "a.jsonl", b'{"text": "a"}\n\n{"text": ""}\r\n{"text": "\\u0000"}')
    assert read(file, 5) == [Document(b"a", None, 14), SkippedDocument(14, "empty"), Document(b"\0", None, 18)]


def test_lines_by_another_key_and_in_other_names(tmp_path):
    for name in ("a.JSONL", "a.ndjson", "a.b.NDJson"):
        assert texts(read(write(tmp_path / name, jsonl(["x", "y"], "content")), text_field="content")) == [b"x", b"y"]


def test_a_byte_order_mark_and_separators_that_are_no_newlines(tmp_path):
    content = b"\xef\xbb\xbf" + jsonl(["a\u2028b\x85c\x0bd"])
    assert texts(read(write(tmp_path / "a.jsonl", content), 1)) == ["a\u2028b\x85c\x0bd".encode()]


def test_no_lines(tmp_path):
    assert split_into_pieces(write(tmp_path / "a.jsonl", b""), 10) == []
    assert read(write(tmp_path / "b.jsonl", b"\n \r\n"), 1) == []


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b'{"text": "a"', "not valid JSON"),
        (b'{"text": "a"} {"text": "b"}', "not valid JSON"),
        (b"text", "not valid JSON"),
        (b"[" * 100_000, "recursion"),
        (b'["text"]', '["text"] is not a JSON object'),
        (b"null", "null is not a JSON object"),
        (b'{"id": 1, "Text": "a"}', "no key 'text', only 'id', 'Text'"),
        (b"{}", "no key 'text', only nothing"),
        (b'{"text": 7}', "'text' is 7, not a string"),
        (b'{"text": [7, 8]}', "token ids are not read from JSON"),
        (b'{"text": ["a"]}', """'text' is ["a"], not a string"""),
        (b'{"text": "\xff"}', "not UTF-8 at its byte 10"),
        (b'{"text": "a\\ud800"}', "half a surrogate pair at its character 1"),
    ],
)
@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_a_malformed_line_is_named(tmp_path, bad, reason, suffix):
    good = jsonl(["good", "ones"])
    content = COMPRESSORS.get(suffix, bytes)(good + bad + b"\n" + good)
    file = write(tmp_path / f"a.jsonl{suffix}", content)
    assert_refused(file, f"line at byte {len(good)}: ", reason, piece_bytes=7)


def test_many_keys_are_not_all_named(tmp_path):
    file = write(tmp_path / "a.jsonl", json.dumps({f"key{i}" * 100: 1 for i in range(50)}).encode())
    with refused(DataError, file, 30) as raised:
        read(file)
    assert len(str(raised.value)) < 2500


def test_lines_that_were_cut_since_are_refused(tmp_path):
    file = write(tmp_path / "a.jsonl", jsonl(["a", "b", "c"]))
    pieces = split_into_pieces(file, 14)
    file.write_bytes(jsonl(["a", "b"]))
    assert texts(read_piece(pieces[0])) == [b"a"]
    with refused(DataError, file, file.stat().st_size):
        list(read_piece(pieces[-1]))
