"""Reading input files as documents, in pieces for different processes; the documents do not depend on the cuts."""

import codecs
import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from nar_scale.data.formats.input_formats import (
    BUFFER_BYTES,
    DEFAULT_TEXT_FIELD,
    Piece,
    Skip,
    Source,
    input_errors,
    json_document,
    optional_package,
    raw_document,
    read_archive,
    read_array,
    read_parquet,
    read_tar,
    split_array,
    split_parquet,
)
from nar_scale.errors import DataError

LINE_SUFFIXES = (".jsonl", ".ndjson")
COMPRESSED_SUFFIXES = (".gz", ".zst")
TOKEN_SUFFIXES = (".npy", ".npz")
# The decompressor returns all that its input holds, and four bytes may hold a block of 128 KiB: 8 MiB at most.
ZSTD_INPUT_BYTES = 256
ZSTD_WINDOW_BYTES = 1 << 31


def split_into_pieces(file: Path, piece_bytes: int) -> list[Piece]:
    """Cut an input file into pieces whose documents, one piece after the other, are those of the file in order.

    Args:
        file: its suffix, in whatever case, tells its format: `.jsonl`, `.ndjson`, `.parquet` and `.npy` are cut,
            `.tar`, `.npz`, `.gz`, `.zst` and all other files are one piece.
        piece_bytes: size of a piece, at least 1; a piece is as much larger as its last line, row or row group demands.

    Returns:
        The pieces in order; none for a file that has no lines, rows or row groups.

    Raises:
        DataError: the file cannot be read, is damaged or does not hold what its suffix says.
        UserError: an optional package is needed and not installed.
    """
    if _has_suffix(file, ".parquet"):
        return split_parquet(file, piece_bytes)
    if _has_suffix(file, ".npy"):
        return split_array(file, piece_bytes)
    with input_errors(file):
        size = file.stat().st_size
    if not _has_suffix(file, *LINE_SUFFIXES):
        return [Piece(file, 0, size, size)]
    starts = range(0, size, piece_bytes)
    return [Piece(file, start, min(start + piece_bytes, size), min(piece_bytes, size - start)) for start in starts]


def read_piece(piece: Piece, text_field: str = DEFAULT_TEXT_FIELD) -> Iterator[Source | Skip]:
    """Read the documents of a piece one by one.

    - `.jsonl`, `.ndjson`, also followed by `.gz` or `.zst`: one for each line that is not blank, a JSON object.
    - `.parquet`: one for each row.
    - `.tar`: one for each sample, in the layout of WebDataset.
    - `.npy`: one for each row of an array [rows, ...], flattened row by row; an array [n] is one document.
    - `.npz`: the same, of its only array or that named tokens, images or x, with labels if there are any.
    - anything else: the whole file is one document of text, decompressed if it ends in `.gz` or `.zst`.

    Args:
        piece: from `split_into_pieces`, of a file that has not changed since.
        text_field: the key of a line, the column of a `.parquet`, the field of a `.tar`. The default takes of each
            sample of a tar the first there is of `txt`, `text`, `tokens.npy` and `json`, the last an object as in a
            line. Fields that end in `npy` are tokens, with a label if the sample has a `cls`.

    Yields:
        Documents, and a `Skip` for each that is empty, binary (a NUL byte in a raw file or member) or without text.

    Raises:
        DataError: the file cannot be read or is damaged, or a document is malformed.
        UserError: an optional package is needed and not installed.
    """
    file = piece.file
    if _has_suffix(file, *LINE_SUFFIXES):
        return _read_lines(piece, text_field)
    if _has_suffix(file, *COMPRESSED_SUFFIXES):
        return _read_compressed(piece, text_field)
    if _has_suffix(file, ".parquet"):
        return read_parquet(piece, text_field)
    if _has_suffix(file, ".tar"):
        return read_tar(piece, text_field)
    if _has_suffix(file, ".npy"):
        return read_array(piece)
    if _has_suffix(file, ".npz"):
        return read_archive(piece)
    return _read_file(piece)


def is_token_file(file: Path) -> bool:
    """Return whether all documents of a file are tokens by its format; those of a tar may be either."""
    return _has_suffix(file, *TOKEN_SUFFIXES)


def _has_suffix(file: Path, *suffixes: str) -> bool:
    return file.name.lower().endswith(suffixes)


def _read_file(piece: Piece) -> Iterator[Source | Skip]:
    with input_errors(piece.file), open(piece.file, "rb") as file:
        yield _whole_document(file, piece.size)


def _whole_document(file: BinaryIO, size: int) -> Source | Skip:
    text = io.BytesIO()
    while block := file.read(BUFFER_BYTES):
        if b"\0" in block:  # the rest of a large binary file need not be read
            return Skip(size, "binary")
        text.write(block)
    return raw_document(text.getvalue(), size)


def _read_lines(piece: Piece, text_field: str) -> Iterator[Source | Skip]:
    with input_errors(piece.file), open(piece.file, "rb") as file:
        position = _seek_first_line(file, piece)
        while position < piece.end:
            line = file.readline()
            if not line:
                raise DataError(
                    f"input {piece.file} ends at byte {position}, earlier than it did; wait until it is complete"
                )
            if document := _line_document(piece.file, line, position, text_field, len(line)):
                yield document
            position += len(line)


def _seek_first_line(file: BinaryIO, piece: Piece) -> int:
    """Go to the first line that starts in the piece and return its position, the end or later if there is none."""
    if piece.start == 0:
        return 0
    # the byte before tells whether a line starts here
    position = file.seek(piece.start - 1)
    while position < piece.end and (part := file.readline(BUFFER_BYTES)):
        position += len(part)
        if part.endswith(b"\n"):
            break
    return position


def _line_document(file: Path, line: bytes, position: int, text_field: str, size: int) -> Source | Skip | None:
    if position == 0:
        line = line.removeprefix(codecs.BOM_UTF8)
    if line.isspace() or not line:
        return None
    return json_document(line, text_field, size, f"input {file}, line at byte {position}")


def _read_compressed(piece: Piece, text_field: str) -> Iterator[Source | Skip]:
    path = piece.file
    with (
        input_errors(path, EOFError, zlib.error),
        open(path, "rb") as file,
        _decompressed(path, file) as stream,
    ):
        if not file.peek(1):  # what is compressed to nothing still has a header
            raise EOFError("it is empty")
        if not _has_suffix(path.with_suffix(""), *LINE_SUFFIXES):
            yield _whole_document(stream, piece.size)
            return
        position = consumed = 0
        for line in stream:
            size, consumed = file.tell() - consumed, file.tell()
            if document := _line_document(path, line, position, text_field, size):
                yield document
            position += len(line)


@contextmanager
def _decompressed(path: Path, file: BinaryIO) -> Iterator[Any]:
    if _has_suffix(path, ".gz"):
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
