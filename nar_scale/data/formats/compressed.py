"""Compressed text (`.gz`, `.zst`): lines of JSON where the name before says so, or else one document of text."""

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from nar_scale.data.formats import jsonl, plain_text
from nar_scale.data.formats.documents import BUFFER_BYTES, Documents, Piece, input_errors, optional_package

# The decompressor returns all that its input holds, and four bytes may hold a block of 128 KiB: 8 MiB at most.
ZSTD_INPUT_BYTES = 256
ZSTD_WINDOW_BYTES = 1 << 31


def split(file: Path, piece_bytes: int) -> list[Piece]:
    """Return the file as one piece: it can only be read from its start; see `InputFormat.split`."""
    return [Piece.whole(file)]


def read(piece: Piece, text_field: str) -> Documents:
    """Yield the documents of the decompressed content; see `InputFormat.read`.

    Raises:
        DataError: the file is truncated or damaged, or a line is malformed.
        UserError: the file ends in `.zst` and the package zstandard is not installed.
    """
    path = piece.file
    with (
        input_errors(path, EOFError, zlib.error),
        open(path, "rb") as file,
        _decompressed(path, file) as stream,
    ):
        if not file.peek(1):  # what is compressed to nothing still has a header
            raise EOFError("it is empty")
        if not path.with_suffix("").name.lower().endswith(jsonl.SUFFIXES):
            yield plain_text.read_stream(stream, piece.size)
            return
        position = consumed = 0
        for line in stream:
            size, consumed = file.tell() - consumed, file.tell()
            if document := jsonl.line_document(path, line, position, text_field, size):
                yield document
            position += len(line)


@contextmanager
def _decompressed(path: Path, file: BinaryIO) -> Iterator[Any]:
    if path.name.lower().endswith(".gz"):
        with gzip.GzipFile(fileobj=file) as stream:
            yield stream
    else:
        with io.BufferedReader(_ZstdFile(path, file), BUFFER_BYTES) as buffered:
            yield buffered


class _ZstdFile(io.RawIOBase):
    """The content of a file of zstd frames. The package's own reader takes a truncated file for a whole one."""

    def __init__(self, path: Path, file: BinaryIO):
        try:
            import zstandard
        except ImportError as error:
            raise optional_package(path, error) from None
        self._file = file
        self._error = zstandard.ZstdError
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_BYTES)
        self._frame: Any = None
        self._input = b""
        self._output = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._output:
            self._input = self._input or self._file.read(ZSTD_INPUT_BYTES)
            if not self._input:
                if self._frame is not None:
                    raise OSError("it ends in the middle of a zstd frame")
                return 0
            self._output = memoryview(self._decompress())
        count = min(len(buffer), len(self._output))
        buffer[:count] = self._output[:count]
        self._output = self._output[count:]
        return count

    def _decompress(self) -> bytes:
        self._frame = self._frame or self._decompressor.decompressobj()
        try:
            output = self._frame.decompress(self._input)
        except self._error as error:
            raise OSError(str(error)) from None
        self._input = b""
        if self._frame.eof:
            self._input, self._frame = self._frame.unused_data, None
        return output
