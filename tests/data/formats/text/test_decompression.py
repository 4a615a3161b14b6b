import io

import numpy as np
import pytest
import zstandard

from nar_scale.data.formats.documents import Document
from nar_scale.data.formats.inputs import split_into_pieces
from tests.data.formats.reading import (
    COMPRESSORS,
    assert_refused,
    jsonl,
    lines_of,
    memory_peak,
    read,
    reasons,
    texts,
    write,
)

WINDOWS = {".xz": 8 << 20}  # bytes that its default level has to keep


@pytest.mark.parametrize("suffix", COMPRESSORS)
def test_a_compressed_text_file_is_one_document(tmp_path, suffix):
    compress = COMPRESSORS[suffix]
    content = compress(b"one\ntwo")
    assert read(write(tmp_path / f"a.txt{suffix}", content)) == [Document(b"one\ntwo", None, len(content))]
    assert texts(read(write(tmp_path / f"A{suffix.upper()}", compress(b"a") + compress(b"b")))) == [b"ab"]
    assert reasons(read(write(tmp_path / f"b.txt{suffix}", compress(b"a\0")))) == ["binary"]
    assert reasons(read(write(tmp_path / f"c.txt{suffix}", compress(b"")))) == ["empty"]


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


@pytest.mark.parametrize("suffix", COMPRESSORS)
def test_compressed_lines_are_streamed(tmp_path, suffix):
    line = jsonl([np.random.default_rng(0).bytes(5_000).hex()])
    member = COMPRESSORS[suffix](line)
    file = tmp_path / f"a.jsonl{suffix}"
    for content in (member * 2000, COMPRESSORS[suffix](line * 2000)):
        peak, documents = memory_peak(write(file, content))
        assert documents == 2000
        assert peak < 8_000_000 + WINDOWS.get(suffix, 0)  # of 20 MB


def test_zeros_in_a_large_zstd_file_are_not_all_read(tmp_path):
    file = write(tmp_path / "zeros.zst", COMPRESSORS[".zst"](bytes(200_000_000)))
    peak, _ = memory_peak(file)
    assert peak < 40_000_000
