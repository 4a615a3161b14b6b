"""Reading the samples of a tar from its start to its end: a file, also compressed, or the output of a command."""

import bz2
import gzip
import lzma
import signal
import subprocess
import tarfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from nar_scale.data.formats.tar import SplitSampleCheck, sample_member
from nar_scale.text import printable

BLOCK_BYTES = 1 << 20
CLOSING_SECONDS = 10.0
BROKEN_PIPE = (-signal.SIGPIPE, 128 + signal.SIGPIPE)
READ_ERRORS = (OSError, EOFError, ValueError, tarfile.TarError, zlib.error, lzma.LZMAError)
DECOMPRESSORS: dict[bytes, Callable[[Any], Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
MAGIC_BYTES = max(map(len, DECOMPRESSORS))


def read_tar_stream(url: str) -> Iterator[dict[str, Any]]:
    """Yield the samples of a shard: the content of each field in bytes, and the key as `__key__`.

    Args:
        url: a file, or a command that writes a tar, `pipe:COMMAND`, which a shell runs.

    Raises:
        Exception: one of `READ_ERRORS`, if the shard is damaged or the command fails.
        SplitSampleError: the members of a sample are not adjacent.
    """
    from webdataset.gopen import Pipe, gopen
    from webdataset.tariterators import group_by_keys, tar_file_expander

    stream = gopen(url)
    failure: Exception | None = None
    try:
        content = _decompressed(stream.stream if isinstance(stream, Pipe) else stream)
        files = tar_file_expander([{"url": url, "stream": content}], select_files=_is_of_a_sample)
        check = SplitSampleCheck()
        for sample in group_by_keys(files):
            check.add(sample["__key__"], (field for field in sample if not field.startswith("__")))
            yield sample
        while content.read(BLOCK_BYTES):
            pass  # a command should be able to end by itself, and a compressed file ends with its checksum
    except READ_ERRORS as error:
        failure = error
    finally:
        status = _exit_status(stream)
    if status:  # which says more, and of a tar cut between two members it is all there is to notice
        raise OSError(f"its command ended with exit status {status}")
    if failure is not None:
        raise failure


def _is_of_a_sample(name: str) -> bool:
    return sample_member(name) is not None


def _decompressed(stream: Any) -> Any:
    """Return the decompressed content of a buffered stream.

    A truncated stream is an error here, which the decompression of tarfile takes for the end.
    """
    peeked = _PeekedStream(stream, MAGIC_BYTES)
    magic = next((magic for magic in DECOMPRESSORS if peeked.head.startswith(magic)), None)
    return peeked if magic is None else DECOMPRESSORS[magic](peeked)


class _PeekedStream:
    """A stream and its first bytes. `peek` of a pipe would give no more than a command has written by then."""

    def __init__(self, stream: Any, size: int):
        self.head, self._stream = stream.read(size), stream

    def read(self, size: int) -> bytes:
        head, self.head = self.head[:size], self.head[size:]
        return head + self._stream.read(size - len(head))


def _exit_status(stream: Any) -> int:
    """Close what was read, and return the exit status of a command if it has failed."""
    from webdataset.gopen import Pipe

    if not isinstance(stream, Pipe):
        stream.close()
        return 0
    stream.stream.close()
    try:
        status = stream.proc.wait(CLOSING_SECONDS)
    except subprocess.TimeoutExpired:
        stream.proc.kill()
        stream.proc.wait()
        return 0
    return 0 if status in BROKEN_PIPE else status


def reason_of(error: Exception) -> str:
    """Return the message of a read error, without the objects that webdataset adds to the arguments of an error."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(next(iter(error.args), error))
    return printable(" ".join(text.partition(" @ <")[0].split()))
