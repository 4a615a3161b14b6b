"""Reading input files in tests."""

import bz2
import gzip
import json
import lzma
import tracemalloc

import numpy as np
import pytest
import zstandard

from nar_scale.data.formats.documents import Document, SkippedDocument
from nar_scale.data.formats.inputs import read_piece, split_into_pieces
from nar_scale.errors import DataError

COMPRESSORS = {
    ".gz": gzip.compress,
    ".zst": zstandard.ZstdCompressor(write_checksum=True).compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}


WHOLE = 1 << 30


def read(file, piece_bytes=WHOLE, **options):
    return [source for piece in split_into_pieces(file, piece_bytes) for source in read_piece(piece, **options)]


def texts(sources):
    return [source.text for source in sources if isinstance(source, Document)]


def tokens(sources):
    return [source.tokens.tolist() for source in sources if isinstance(source, Document)]


def reasons(sources):
    return [source.reason for source in sources if isinstance(source, SkippedDocument)]


def jsonl(documents, key="text"):
    return "".join(json.dumps({key: text}, ensure_ascii=False) + "\n" for text in documents).encode()


def write(path, content):
    path.write_bytes(content)
    return path


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


def lines_of(content):
    """What any split must give, by the rule itself: split at newlines, leave out blank lines."""
    return [json.loads(line)["text"].encode() for line in content.split(b"\n") if line.strip()]


def memory_peak(file, **options):
    """Peak of Python's own memory, and documents read."""
    tracemalloc.start()
    count = sum(1 for piece in split_into_pieces(file, WHOLE) for _ in read_piece(piece, **options))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak, count
