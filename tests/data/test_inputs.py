import gzip
import io
import json
import os
import sys
import tarfile
import tracemalloc
from itertools import chain, cycle
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import webdataset
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from nar_scale.data.formats.inputs import Piece, Skip, Source, is_token_file, read_piece, split_into_pieces
from nar_scale.errors import DataError, UserError

COMPRESSORS = {".gz": gzip.compress, ".zst": zstandard.ZstdCompressor(write_checksum=True).compress}
WHOLE = 1 << 30


def read(file, piece_bytes=WHOLE, **options):
    return [source for piece in split_into_pieces(file, piece_bytes) for source in read_piece(piece, **options)]


def texts(sources):
    return [source.text for source in sources if isinstance(source, Source)]


def tokens(sources):
    return [source.tokens.tolist() for source in sources if isinstance(source, Source)]


def reasons(sources):
    return [source.reason for source in sources if isinstance(source, Skip)]


def jsonl(documents, key="text"):
    return "".join(json.dumps({key: text}, ensure_ascii=False) + "\n" for text in documents).encode()


def write(path, content):
    path.write_bytes(content)
    return path


def write_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def save(path, array, **options):
    np.save(path, array, **options)
    return path


def assert_refused(file, *parts, error=DataError, **options):
    with pytest.raises(error) as raised:
        read(file, **options)
    message = str(raised.value)
    assert "\n" not in message
    for part in (str(file), *parts):
        assert part in message


# Text files


@pytest.mark.parametrize("name", ["notes.txt", "program.PY", "README", "a.json", "jsonl"])
def test_any_other_file_is_one_document(tmp_path, name):
    file = write(tmp_path / name, "Grüße\r\n{}\n".encode())
    assert split_into_pieces(file, 1) == [Piece(file, 0, 12, 12)]
    assert read(file) == [Source("Grüße\r\n{}\n".encode(), None, 12)]


def test_bytes_that_are_not_text_are_kept_as_they_are(tmp_path):
    content = bytes(range(1, 256))
    assert texts(read(write(tmp_path / "latin1.txt", content))) == [content]


def test_empty_and_binary_files_are_skipped(tmp_path):
    assert read(write(tmp_path / "empty.txt", b"")) == [Skip(0, "empty")]
    assert read(write(tmp_path / "program", b"ELF\0")) == [Skip(4, "binary")]
    late = bytes([1]) * 3_000_000 + b"\0"
    assert read(write(tmp_path / "late", late)) == [Skip(3_000_001, "binary")]


@pytest.mark.parametrize("suffix", COMPRESSORS)
def test_a_compressed_text_file_is_one_document(tmp_path, suffix):
    compress = COMPRESSORS[suffix]
    content = compress(b"one\ntwo")
    assert read(write(tmp_path / f"a.txt{suffix}", content)) == [Source(b"one\ntwo", None, len(content))]
    assert texts(read(write(tmp_path / f"A{suffix.upper()}", compress(b"a") + compress(b"b")))) == [b"ab"]
    assert reasons(read(write(tmp_path / f"b.tar{suffix}", compress(b"a\0")))) == ["binary"]
    assert reasons(read(write(tmp_path / f"c.txt{suffix}", compress(b"")))) == ["empty"]


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.jsonl.gz", "a.zst", "a.parquet", "a.tar", "a.npy", "a.npz"])
def test_a_missing_file_is_refused(tmp_path, name):
    assert_refused(tmp_path / name, "No such file", "exclude it")


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.jsonl.gz", "a.zst", "a.parquet", "a.tar", "a.npy", "a.npz"])
def test_a_file_that_vanishes_before_it_is_read_is_refused(tmp_path, name):
    with pytest.raises(DataError, match=name):
        list(read_piece(Piece(tmp_path / name, 0, 10, 10)))


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.jsonl.gz", "a.zst", "a.parquet", "a.tar", "a.npy", "a.npz"])
def test_a_file_that_cannot_be_opened_is_refused(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(DataError, match=f"{name}"):
        list(read_piece(Piece(tmp_path / name, 0, 10, 10)))


# Lines


def lines_of(content):
    """What any split must give, by the rule itself: split at newlines, leave out blank lines."""
    return [json.loads(line)["text"].encode() for line in content.split(b"\n") if line.strip()]


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
    assert read(file, 5) == [Source(b"a", None, 14), Skip(14, "empty"), Source(b"\0", None, 18)]


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
        (b'{"text": null}', "'text' is null, not a string"),
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
    with pytest.raises(DataError, match="30 more") as raised:
        read(file)
    assert len(str(raised.value)) < 2500


def test_lines_that_were_cut_since_are_refused(tmp_path):
    file = write(tmp_path / "a.jsonl", jsonl(["a", "b", "c"]))
    pieces = split_into_pieces(file, 14)
    file.write_bytes(jsonl(["a", "b"]))
    assert texts(read_piece(pieces[0])) == [b"a"]
    with pytest.raises(DataError, match=r"a\.jsonl ends at byte"):
        list(read_piece(pieces[-1]))


# Compressed lines


@pytest.mark.parametrize("suffix", COMPRESSORS)
def test_compressed_lines_of_several_members(tmp_path, suffix):
    compress = COMPRESSORS[suffix]
    content = jsonl([f"document {i}" for i in range(300)])
    members = [compress(part) for part in (content[:1000], b"", content[1000:])]
    for name in (f"a.jsonl{suffix}", f"a.NDJSON{suffix.upper()}"):
        file = write(tmp_path / name, b"".join(members))
        assert len(split_into_pieces(file, 10)) == 1
        sources = read(file)
        assert texts(sources) == lines_of(content)
        assert sum(source.size for source in sources) == file.stat().st_size


@pytest.mark.parametrize("suffix", COMPRESSORS)
def test_compressed_lines_that_are_blank_empty_or_none(tmp_path, suffix):
    compress = COMPRESSORS[suffix]
    sources = read(write(tmp_path / f"a.jsonl{suffix}", compress(b'\n{"text": ""}\r\n{"text": "last"}')))
    assert texts(sources) == [b"last"]
    assert reasons(sources) == ["empty"]
    assert read(write(tmp_path / f"b.jsonl{suffix}", compress(b""))) == []


@pytest.mark.parametrize("suffix", COMPRESSORS)
@pytest.mark.parametrize("stem", ["a.jsonl", "a.txt"])
def test_a_truncated_or_damaged_stream_is_refused(tmp_path, suffix, stem):
    text = jsonl([f"document {i * i * 7919}" for i in range(200)])
    content = COMPRESSORS[suffix](text)
    file = tmp_path / (stem + suffix)
    assert_refused(write(file, b""), "truncated or damaged (it is empty)")
    for kept in (3, len(content) // 2, len(content) - 1):
        assert_refused(write(file, content[:kept]), "truncated or damaged", "copy it again")
        assert_refused(write(file, content + content[:kept]), "truncated or damaged")
    damaged = bytearray(content)
    damaged[len(content) // 2] ^= 255
    assert_refused(write(file, damaged), "truncated or damaged")
    assert_refused(write(file, text), "truncated or damaged")
    assert_refused(write(file, content + b"garbage"), "truncated or damaged")


def test_skippable_frames_of_zstd(tmp_path):
    skippable = b"\x50\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"hello"
    content = skippable + COMPRESSORS[".zst"](jsonl(["a"])) + skippable
    assert texts(read(write(tmp_path / "a.jsonl.zst", content))) == [b"a"]


def test_a_large_window_of_zstd(tmp_path):
    parameters = zstandard.ZstdCompressionParameters(window_log=31, enable_ldm=False)
    stream = io.BytesIO()
    with zstandard.ZstdCompressor(compression_params=parameters).stream_writer(stream, closefd=False) as writer:
        writer.write(jsonl(["a"]))
    assert zstandard.get_frame_parameters(stream.getvalue()).window_size == 1 << 31
    assert texts(read(write(tmp_path / "a.jsonl.zst", stream.getvalue()))) == [b"a"]


def memory_peak(file, **options):
    """Peak of Python's own memory, and documents read."""
    tracemalloc.start()
    count = sum(1 for piece in split_into_pieces(file, WHOLE) for _ in read_piece(piece, **options))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak, count


@pytest.mark.parametrize("suffix", COMPRESSORS)
def test_compressed_lines_are_streamed(tmp_path, suffix):
    line = jsonl([np.random.default_rng(0).bytes(5_000).hex()])
    member = COMPRESSORS[suffix](line)
    file = tmp_path / f"a.jsonl{suffix}"
    for content in (member * 2000, COMPRESSORS[suffix](line * 2000)):
        peak, documents = memory_peak(write(file, content))
        assert documents == 2000
        assert peak < 8_000_000  # of 20 MB


def test_zeros_in_a_large_zstd_file_are_not_all_read(tmp_path):
    file = write(tmp_path / "zeros.zst", COMPRESSORS[".zst"](bytes(200_000_000)))
    peak, _ = memory_peak(file)
    assert peak < 40_000_000


# Parquet


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
    assert reasons(sources) == ["empty"] * 100
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


# Tar


def test_the_text_of_samples(tmp_path):
    file = write_tar(
        tmp_path / "a.TAR",
        [
            ("a/0.json", b'{"text": "not this"}'),
            ("a/0.txt", "first ä".encode()),
            ("a/0.jpg", b"\0"),
            ("1.text", b"second"),
            ("2.json", b'{"text": "third", "id": 1}'),
            ("LICENSE", b"no sample"),
            ("3.txt", b""),
            ("4.txt", b"a\0b"),
            ("5.jpg", b"\0"),
            ("6.tokens.npy", npy(np.array([1, 2], dtype=np.uint16))),
        ],
    )
    assert len(split_into_pieces(file, 1)) == 1
    sources = read(file)
    assert texts(sources) == ["first ä".encode(), b"second", b"third", None]
    assert reasons(sources) == ["empty", "binary", "no text"]
    assert sources[-1].tokens.tolist() == [1, 2]
    end = file.read_bytes().rstrip(b"\0")
    assert 0 <= sum(source.size for source in sources) - len(end) < 512


def test_another_field_of_samples(tmp_path):
    file = write_tar(
        tmp_path / "a.tar",
        [("0.txt", b"text"), ("0.caption.txt", b"one"), ("1.json", b'{"caption.txt": "two"}'), ("1.x", b"")],
    )
    assert texts(read(file, text_field="caption.txt")) == [b"one", b"two"]
    assert texts(read(file, text_field="txt")) == [b"text"]
    assert reasons(read(file, text_field="txt")) == ["no text"]
    assert_refused(file, "sample '1', field 'json'", "no key 'text', only 'caption.txt'", text_field="json")
    assert_refused(
        file, "no sample with a field 'codes.npy', only 'txt', 'caption.txt', 'json'", text_field="codes.npy"
    )


def test_tokens_with_classes_in_a_shard_of_webdataset(tmp_path):
    rows = np.arange(50, dtype=np.uint16)
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as writer:
        for number, label in enumerate([3, 1, 4, 1]):
            sample = rows[16 * number : 16 * number + 16]
            writer.write({"__key__": f"{number:09d}", "cls": label, "tokens.npy": sample})
    sources = read(tmp_path / "a.tar")
    assert np.concatenate([source.tokens for source in sources]).tolist() == rows.tolist()
    assert [source.label for source in sources] == [3, 1, 4, 1]
    assert [len(source.tokens) for source in sources] == [16, 16, 16, 2]


def test_token_fields_of_samples(tmp_path):
    images = np.arange(24, dtype=">i4").reshape(2, 3, 4)
    file = write_tar(
        tmp_path / "a.tar",
        [("0.codes.npy", npy(images[0])), ("1.codes.npy", npy(images[1])), ("2.codes.npy", npy(np.zeros(0, int)))],
    )
    sources = read(file, text_field="codes.npy")
    assert tokens(sources) == [list(range(12)), list(range(12, 24))]
    assert reasons(sources) == ["empty"]
    assert sources[0].label is None


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([("0.txt", b"a"), ("0.txt", b"b")], "sample '0', field 'txt' occurs 2 times"),
        ([("0.json", b"{")], "sample '0', field 'json': not valid JSON"),
        ([("0.jpg", b"a"), ("1.cls", b"1")], "no sample with a field 'txt' or 'text'"),
        ([("0.tokens.npy", npy(np.zeros(3)))], "float64, not integer tokens"),
        ([("0.tokens.npy", npy(np.array(3)))], "a single number"),
        ([("0.tokens.npy", npy(np.array([-3])))], "token -3 is negative"),
        ([("0.tokens.npy", npy(np.array([{}])))], "pickled"),
        ([("0.tokens.npy", npy(np.arange(9))[:-1])], "ends in the middle"),
        ([("0.tokens.npy", b"tokens")], "not a .npy file"),
        ([("0.cls", b"cat"), ("0.tokens.npy", npy(np.arange(9)))], "class b'cat' is not an integer"),
        ([("0.cls", b"-1"), ("0.tokens.npy", npy(np.arange(9)))], "class b'-1' is not an integer"),
    ],
)
def test_malformed_samples_are_refused(tmp_path, members, reason):
    assert_refused(write_tar(tmp_path / "a.tar", members), reason)


def test_a_damaged_tar_is_refused(tmp_path):
    file = write_tar(tmp_path / "a.tar", [(f"{i}.txt", b"text" * 300) for i in range(4)])
    content = file.read_bytes()
    ends = [0, 1, 511, 512, 700, 1712, 2047, 2048, 4000, 4096, 8191, 8192]
    assert content.rstrip(b"\0")[-1:] == b"t"
    for end in ends:
        assert_refused(write(file, content[:end]), "truncated, damaged")
    for position in (100, 2048 + 150):
        damaged = bytearray(content)
        damaged[position] ^= 1
        assert_refused(write(file, damaged), "truncated, damaged")
    assert_refused(write(file, gzip.compress(content)), "not an uncompressed tar")
    assert texts(read(write(file, content[: 8192 + 512]))) == [b"text" * 300] * 4


def test_an_empty_tar_holds_nothing(tmp_path):
    assert read(write_tar(tmp_path / "a.tar", [])) == []


def test_nothing_of_a_tar_is_extracted_or_followed(tmp_path):
    secret = write(tmp_path / "secret", b"secret")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        link = tarfile.TarInfo("0.txt")
        link.type, link.linkname = tarfile.SYMTYPE, str(secret)
        tar.addfile(link)
        outside = tarfile.TarInfo("../../outside/1.txt")
        outside.size = 1
        tar.addfile(outside, io.BytesIO(b"a"))
    assert texts(read(tmp_path / "a.tar")) == [b"a"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar", "secret"]


def test_a_tar_is_streamed(tmp_path):
    file = write_tar(tmp_path / "a.tar", [(f"{i}.txt", b"a" * 20_000) for i in range(1500)])
    peak, documents = memory_peak(file)
    assert documents == 1500
    assert peak < 2_000_000  # of 30 MB


# NumPy


def test_token_files():
    assert [is_token_file(Path(name)) for name in ("a.npy", "A.NPZ", "a.npy.gz", "npy", "a.txt", "a.tar")] == [
        True,
        True,
        False,
        False,
        False,
        False,
    ]


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
    with pytest.raises(DataError, match="5 rows"):
        list(read_piece(pieces[-1]))


@pytest.mark.parametrize("content", ["tokens", "images", "x"])
@pytest.mark.parametrize("labels", ["labels", "y", "cls"])
@pytest.mark.parametrize("savez", [np.savez, np.savez_compressed])
def test_archives_with_labels(tmp_path, content, labels, savez):
    images = np.arange(12, dtype=np.uint8).reshape(3, 2, 2)
    savez(tmp_path / "a.npz", **{labels: np.array([2, 0, 1]), content: images})
    assert len(split_into_pieces(tmp_path / "a.npz", 1)) == 1
    sources = read(tmp_path / "a.npz")
    assert tokens(sources) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert [source.label for source in sources] == [2, 0, 1]
    assert all(type(source.label) is int for source in sources)
    assert sum(source.size for source in sources) == (tmp_path / "a.npz").stat().st_size


def test_archives_of_one_array(tmp_path):
    np.savez(tmp_path / "a.npz", whatever=np.arange(4))
    assert tokens(read(tmp_path / "a.npz")) == [[0, 1, 2, 3]]
    np.savez(tmp_path / "a.npz", np.arange(4).reshape(2, 2))
    assert tokens(read(tmp_path / "a.npz")) == [[0, 1], [2, 3]]
    assert [source.label for source in read(tmp_path / "a.npz")] == [None, None]


@pytest.mark.parametrize(
    "names", [("a", "b"), ("x", "tokens"), ("x_train", "y_train"), ("x", "y", "cls"), ("x", "y", "mask"), ("y", "cls")]
)
def test_ambiguous_archives_are_refused(tmp_path, names):
    np.savez(tmp_path / "a.npz", **{name: np.arange(4) for name in names})
    assert_refused(tmp_path / "a.npz", ", ".join(map(repr, names)))


def test_an_archive_of_nothing_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz")
    assert_refused(tmp_path / "a.npz", "holds the arrays nothing")


@pytest.mark.parametrize("labels", [[0, 1], [0, 1, -1], [0.0, 1.0, 2.0], [[0], [1], [2]]])
def test_wrong_labels_are_refused(tmp_path, labels):
    np.savez(tmp_path / "a.npz", x=np.zeros((3, 2), int), y=np.array(labels))
    assert_refused(tmp_path / "a.npz", "array 'y'", "each of the 3 rows")


# All formats


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
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        use()
