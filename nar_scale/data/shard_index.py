"""The index of one shard: a small binary file that says where each sample lies."""

import json
import os
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np

from nar_scale.data.info import TOKENS_FIELD
from nar_scale.data.shard_scan import ShardStamp, scan_shard, stamp_shard
from nar_scale.errors import DataError
from nar_scale.files import write_atomically

INDEX_SUFFIX = ".index"
FORMAT = "nar_scale shard index 1"


@dataclass(frozen=True)
class ShardIndex:
    """What is known of one shard without reading it.

    The file is one line of JSON, then `count` records of key, offset and size.

    Attributes:
        shard: the tar file.
        path: the index file.
        field: the field whose places are recorded.
        stamp: size, mtime and digest of the shard when it was scanned.
        count: number of samples.
        key_bytes: length of the longest key.
    """

    shard: Path
    path: Path
    field: str
    stamp: ShardStamp
    count: int
    key_bytes: int

    def read_table(self) -> np.ndarray:
        """Return a structured array [count]: "key" (bytes), "offset" and "size" (int64, bytes).

        Raises:
            DataError: the index file went away or was replaced by that of another field or content.
        """
        lost = DataError(f"index {self.path} was removed or replaced while in use; start again to rebuild it")
        try:
            with open(self.path, "rb") as file:
                current = _parse_header(file.readline(), self.shard, self.path)
                table = np.frombuffer(file.read(), _table_type(self.key_bytes))
        except (OSError, ValueError) as error:
            raise lost from error
        if (current.field, current.stamp.digest) != (self.field, self.stamp.digest):
            raise lost
        return table


def index_path(shard: Path, field: str, cache_directory: Path | None) -> Path:
    """Return where the index of a shard is kept: beside it, or in the cache under a name unique to its path.

    Fields other than the tokens have indices of their own.
    """
    name = shard.name if field == TOKENS_FIELD else f"{shard.name}.{field.replace('/', '_')}"
    if cache_directory is None:
        return shard.with_name(name + INDEX_SUFFIX)
    unique = blake2b(str(shard.resolve()).encode(), digest_size=8).hexdigest()
    return cache_directory / f"{unique}-{name}{INDEX_SUFFIX}"


def load_shard_index(shard: Path, path: Path, field: str) -> ShardIndex | None:
    """Read an index file; None if there is none, or one of another field, format or length.

    Raises:
        DataError: the file exists but cannot be read.
    """
    try:
        with open(path, "rb") as file:
            line = file.readline()
            file_bytes = os.fstat(file.fileno()).st_size
        index = _parse_header(line, shard, path)
        is_whole = file_bytes == len(line) + index.count * _table_type(index.key_bytes).itemsize
        return index if index.field == field and is_whole else None
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError:
        return None  # not an index of ours: it is made again
    except OSError as error:
        raise DataError(f"cannot read index {path}: {error.strerror}; make it readable or delete it") from error


def is_unchanged(index: ShardIndex) -> bool:
    """Tell whether a shard still has the size and mtime that were indexed, without reading it.

    Raises:
        DataError: the shard went away.
    """
    try:
        status = index.shard.stat()
    except OSError as error:
        raise DataError(f"cannot read shard {index.shard}: {error.strerror}; restore it or correct its path") from error
    return (status.st_size, status.st_mtime_ns) == (index.stamp.size, index.stamp.mtime_ns)


def make_shard_index(shard: Path, path: Path, field: str) -> ShardIndex:
    """Read a whole shard, and build its index or check the one there is.

    A new index is written whole or not at all, so doing this twice at once is harmless. A shard whose mtime alone
    differs from its index is accepted, and the mtime noted so that the next look is quick.

    Raises:
        DataError: the shard changed since it was indexed, is damaged or lacks the field (see `scan_shard`), or the
            index cannot be written.
    """
    known = load_shard_index(shard, path, field)
    stamp = stamp_shard(shard)
    if known is None:
        return _write(shard, path, field, stamp, scan_shard(shard, field))
    if stamp.size != known.stamp.size:
        raise _changed(known, f"{known.stamp.size} bytes then, {stamp.size} now")
    if stamp.digest != known.stamp.digest:
        raise _changed(known, "same size, other content")
    try:
        return _write(shard, path, field, stamp, known.read_table())
    except DataError:
        return known  # the place of the index is read-only: it is still right, only slower to check


def _changed(index: ShardIndex, reason: str) -> DataError:
    return DataError(
        f"shard {index.shard} changed since its index was built ({reason}); "
        f"restore it, or delete {index.path} to rebuild the index"
    )


def _write(shard: Path, path: Path, field: str, stamp: ShardStamp, table: np.ndarray) -> ShardIndex:
    header = {
        "format": FORMAT,
        "field": field,
        "stamp": asdict(stamp),
        "count": len(table),
        "key_bytes": table.dtype["key"].itemsize,
    }
    line = json.dumps(header).encode() + b"\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, line + table.tobytes())
    except OSError as error:
        raise DataError(
            f"cannot write index {path}: {error.strerror}; set data.index_directory (or --index-directory) elsewhere"
        ) from error
    return ShardIndex(shard, path, field, stamp, len(table), table.dtype["key"].itemsize)


def _parse_header(line: bytes, shard: Path, path: Path) -> ShardIndex:
    try:
        header = json.loads(line)
        if header["format"] != FORMAT:
            raise ValueError(f"the format is not {FORMAT!r}")
        return ShardIndex(
            shard, path, header["field"], ShardStamp(**header["stamp"]), header["count"], header["key_bytes"]
        )
    except (TypeError, KeyError) as error:
        raise ValueError(f"no index header: {error}") from error


def _table_type(key_bytes: int) -> np.dtype:
    return np.dtype([("key", f"S{key_bytes}"), ("offset", "<i8"), ("size", "<i8")])
