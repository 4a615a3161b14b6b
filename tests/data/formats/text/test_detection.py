"""Text of any kind under any name: told by the name where it tells, by the content where it does not."""

import json

import pytest

from nar_scale.data.formats.inputs import split_into_pieces
from tests.data.formats.reading import COMPRESSORS, assert_refused, jsonl, read, reasons, texts, write

TEXTS = ["one", "zwölf\n{", "three"]
LINES = jsonl(TEXTS)
ARRAY = json.dumps([{"id": 1, "text": text} for text in TEXTS]).encode()
PRETTY = json.dumps([{"text": text} for text in TEXTS], indent=2, ensure_ascii=False).encode()
OBJECTS = b"\n".join(json.dumps({"id": [1], "text": text}, indent=2).encode() for text in TEXTS)
BOM = b"\xef\xbb\xbf"


@pytest.mark.parametrize("suffix", ["", *COMPRESSORS])
@pytest.mark.parametrize("name", ["a.json", "a.txt", "a", "a.jsonlines", "00123abc", "a.data"])
@pytest.mark.parametrize("content", [LINES, ARRAY, PRETTY, OBJECTS, BOM + ARRAY, b" \n" + LINES, BOM + LINES])
def test_json_by_other_names_is_read_as_json(tmp_path, name, content, suffix):
    if name == "a.jsonlines" and content.strip().count(b"\n") != len(TEXTS) - 1:
        return  # the name says lines
    file = write(tmp_path / (name + suffix), COMPRESSORS.get(suffix, bytes)(content))
    for piece_bytes in (7, 1 << 30):
        assert texts(read(file, piece_bytes)) == [text.encode() for text in TEXTS]


def test_lines_by_other_names_are_cut_into_pieces(tmp_path):
    content = jsonl([f"document {number}" for number in range(100)])
    for name in ("a.json", "a.txt", "a"):
        assert len(split_into_pieces(write(tmp_path / name, content), 100)) == len(content) // 100 + 1


@pytest.mark.parametrize(
    "content",
    [
        b"[link](https://host) and more",
        b'[project]\nname = "x"\n',
        b"{{ template }} {% if x %}",
        b"{ color: red }",
        b"{\\rtf1 text}",
        b'{"a set"}',
        b'["a", list in prose',
        b'"text": "a"',
        b"[1] Author: Title. [2] Another.",
        b"{}",
        b"[",
    ],
)
def test_text_that_only_begins_with_a_bracket_stays_text(tmp_path, content):
    if content.startswith(b'["'):
        assert_refused(write(tmp_path / "a.txt", content), "begins like JSON", "--as-text")
    else:
        assert texts(read(write(tmp_path / "a.txt", content))) == [content]


@pytest.mark.parametrize("name", ["a.txt", "a.json", "a.md", "a.json.gz", "a"])
@pytest.mark.parametrize("content", [LINES[:-3], ARRAY[:-1], ARRAY[:30], ARRAY + b"x", b'{"text": "a",}', PRETTY[:-9]])
def test_damaged_json_is_never_text(tmp_path, name, content):
    stored = COMPRESSORS[".gz"](content) if name.endswith(".gz") else content
    assert_refused(write(tmp_path / name, stored), "JSON")


@pytest.mark.parametrize("content", [LINES, ARRAY, LINES[:-3], b"text,b\n1,2\n"])
def test_what_looks_like_something_is_text_where_that_is_asked_for(tmp_path, content):
    for name, pattern in (("a.json", "*.json"), ("a.jsonl", "a.*"), ("b.csv", "*")):
        file = write(tmp_path / name, content)
        assert texts(read(file, as_text=["*.nothing", pattern])) == [content]
    packed = write(tmp_path / "a.json.gz", COMPRESSORS[".gz"](content))
    assert texts(read(packed, as_text=["*.gz"])) == [content]


def test_one_object_without_the_key_is_skipped_several_are_refused(tmp_path):
    for content in (b'{"name": "settings", "a": {"text": 1}}', b'{\n  "name": "settings"\n}\n'):
        assert reasons(read(write(tmp_path / "package.json", content))) == ["no text"]
        assert_refused(write(tmp_path / "a.json", content + b"\n" + content), "no key 'text', only 'name'")
        assert_refused(write(tmp_path / "a.json", b"[" + content + b"]"), "no key 'text', only 'name'")


@pytest.mark.parametrize(
    "content",
    [
        b'{"a": 1}\nis how an object of JSON begins.\n',
        b'{"role": "user"}\n{"role": "user"}\n',
        b'[{"role": "user"}, {"role": "user"}]',
        b'{"role": "user"} {"role": "user"}',
        b'{"text": "a"}\n\xff\n',
        b'["a", "list"]',
    ],
)
def test_prose_that_begins_like_json_has_a_way_out(tmp_path, content):
    for name in ("a.txt", "a.md.gz", "a"):
        stored = COMPRESSORS[".gz"](content) if name.endswith(".gz") else content
        assert_refused(write(tmp_path / name, stored), "or read it as it is with --as-text")
        assert texts(read(tmp_path / name, as_text=["a*"])) == [content]


def test_null_empty_and_nothing(tmp_path):
    content = b'[{"text": null}, {"text": ""}, {"text": "a"}]'
    assert reasons(read(write(tmp_path / "a.json", content))) == ["no text", "empty"]
    for content in (b"", b" \n", b"[]"):
        assert reasons(read(write(tmp_path / "a.json", content))) == ["empty"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'["a", "b"]', "is not a JSON object"),
        (b"[[1, 2]]", "is not a JSON object"),
        (b'[{"text": 3}]', "'text' is 3, not a string"),
        (b'[{"text": [1, 2]}]', "token ids are not read from JSON"),
        (b'[{"text": "a"} {"text": "b"}]', "']' is missing"),
        (b'[{"text": "a"}, ]', "Expecting value"),
        (b'[{"text": "a"}][{"text": "b"}]', "more after the end"),
        (b'{"text": "\xff"}', "utf-8"),
        (b'{"text": "\\ud800"}', "half a surrogate pair"),
        (b"[" * 100_000, "recursion"),
        (b'{"text": ' + b"9" * 5000 + b"}", "limit"),
        (b"\x93NUMPY", "utf-8"),
        (b'[{"text": "a"}, \0\0\0', "Expecting value"),
        (b"\0\0\0", "Expecting value"),
    ],
)
def test_malformed_json_is_named(tmp_path, content, reason):
    assert_refused(write(tmp_path / "a.json", content), reason)


def test_values_longer_than_any_block_and_across_blocks(tmp_path):
    documents = ["x" * length for length in (1, 65_000, 70, 300_000, 3)] + [f"äöü {number}" for number in range(20_000)]
    file = write(tmp_path / "a.json", json.dumps([{"text": text} for text in documents], ensure_ascii=False).encode())
    assert texts(read(file)) == [text.encode() for text in documents]
    numbers = write(tmp_path / "b.json", b" ".join(b'{"text": "%d"}' % number for number in range(20_000)))
    assert len(texts(read(numbers))) == 20_000


@pytest.mark.parametrize(
    "name", ["a.tar.gz", "a.TGZ", "a.tar.zst", "a.zip", "a.npy.gz", "a.parquet.xz", "a.7z", "a.arrow", "a.pdf"]
)
def test_kinds_that_are_not_read_are_named(tmp_path, name):
    assert_refused(write(tmp_path / name, b"content"), "not read", "exclude it")
