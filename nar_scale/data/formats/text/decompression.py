"""Input files as streams of their content, decompressed if their names say so (`.gz`, `.bz2`, `.xz`, `.zst`)."""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from nar_scale.data.formats.documents import BUFFER_BYTES, input_errors, optional_package

# The decompressor of zstd returns all that its input holds, and four bytes may hold a block of 128 KiB: 8 MiB at most.
INPUT_BYTES = 256  # read at once
ZSTD_WINDOW_BYTES = 1 << 31
LZMA_MEMORY_BYTES = 1 << 30

SUFFIXES = {
    ".gz": "gzip",
    ".gzip": "gzip",
    ".bz2": "bzip2",
    ".xz": "xz",
    ".zst": "zstd",
    ".zstd": "zstd",
}


def split_name(name: str) -> tuple[str, str | None]:
    """Return a file name in lower case without the suffix of its compression, and the compression, None if plain."""
    name = name.lower()
    for suffix, compression in SUFFIXES.items():
        if name.endswith(suffix):
            return name.removesuffix(suffix), compression
    return name, None


class Content:
    """The content of an input file, decompressed.

    Attributes:
        file: the content as a binary stream.
    """

    def __init__(self, file: BinaryIO, stored: BinaryIO):
        self.file = file
        self._stored, self._taken = stored, 0

    def taken(self) -> int:
        """Return the bytes of the input file, as it is stored, that were read since the last call."""
        before, self._taken = self._taken, self._stored.tell()
        return self._taken - before


@contextmanager
def open_content(path: Path) -> Iterator[Content]:
    """Open an input file for reading its content from the start.

    Raises:
        DataError: in opening or in the block: the file cannot be read, or is truncated or damaged.
        UserError: it is compressed by zstd and the package zstandard is not installed.
    """
    compression = split_name(path.name)[1]
    with input_errors(path, EOFError, zlib.error), open(path, "rb") as stored:
        if compression is None:
            yield Content(stored, stored)
            return
        if not stored.peek(1):  # what is compressed to nothing still has a header
            raise EOFError("it is empty")
        if compression == "gzip":
            with gzip.GzipFile(fileobj=stored) as stream:
                yield Content(stream, stored)  # type: ignore[arg-type]
        else:
            frames = _FRAMES[compression](path)
            with io.BufferedReader(_FramesFile(frames, stored, compression), BUFFER_BYTES) as buffered:
                yield Content(buffered, stored)


class _Frames:
    """How frames of one compression are decompressed.

    Attributes:
        new: makes the decompressor of a frame.
        error: what it raises for damaged input.
        most: arguments that limit its output, in bytes.
    """

    def __init__(self, new: Callable[[], Any], error: type[Exception], most: tuple[int, ...] = ()):
        self.new, self.error, self.most = new, error, most


def _zstd_frames(path: Path) -> _Frames:
    try:
        import zstandard
    except ImportError as error:
        raise optional_package(path, error) from None
    decompressor = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_BYTES)
    return _Frames(decompressor.decompressobj, zstandard.ZstdError)


_FRAMES: dict[str, Callable[[Path], _Frames]] = {
    "zstd": _zstd_frames,
    "bzip2": lambda path: _Frames(bz2.BZ2Decompressor, OSError, (BUFFER_BYTES,)),
    "xz": lambda path: _Frames(
        lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, LZMA_MEMORY_BYTES), lzma.LZMAError, (BUFFER_BYTES,)
    ),
}


class _FramesFile(io.RawIOBase):
    """The content of a file of frames, one after the other.

    The readers of the libraries take a truncated file, or one with a damaged second frame, for a whole one.
    """

    def __init__(self, frames: _Frames, file: BinaryIO, compression: str):
        self._frames, self._file, self._compression = frames, file, compression
        self._frame: Any = None
        self._input = b""
        self._output = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._output:
            if not self._input and getattr(self._frame, "needs_input", True):
                self._input = self._file.read(INPUT_BYTES)
                if not self._input:
                    if self._frame is not None:
                        raise OSError(f"it ends in the middle of a {self._compression} frame")
                    return 0
            self._output = memoryview(self._decompress())
        count = min(len(buffer), len(self._output))
        buffer[:count] = self._output[:count]
        self._output = self._output[count:]
        return count

    def _decompress(self) -> bytes:
        if self._frame is None:
            if self._compression == "xz":  # frames may be padded with zeros
                self._input = self._input.lstrip(b"\0")
                if not self._input:
                    return b""
            self._frame = self._frames.new()
        try:
            output: bytes = self._frame.decompress(self._input, *self._frames.most)
        except self._frames.error as error:
            raise OSError(str(error)) from None
        self._input = b""
        if self._frame.eof:
            self._input, self._frame = self._frame.unused_data, None
        return output
