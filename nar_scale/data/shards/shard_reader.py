"""Reading fields of samples out of indexed shards, a bounded number of them open at a time."""

import mmap
import os
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakSet

import numpy as np

from nar_scale.data.shards.index_file import ShardIndex, describe_sample, load_shard_index
from nar_scale.data.shards.shard_index import make_shard_index
from nar_scale.data.shards.shard_scan import ShardStamp, content_checksum
from nar_scale.data.storage.cache_files import CachedShard
from nar_scale.data.storage.shard_cache import CacheFull, ShardCache
from nar_scale.data.storage.urls import is_remote
from nar_scale.errors import DataError

MAX_OPEN_SHARDS = 32
CACHE_FULL_TIMEOUT = 60.0  # seconds to wait for other processes to close what fills the cache
FAILED_SHARD_SECONDS = 30.0  # in which a shard that could not be opened is not tried again
RETRY_WAITS = (0.1, 1.0)  # seconds before the second and the third attempt


@dataclass(frozen=True)
class ShardReference:
    """What a reader needs to know of a shard.

    Attributes:
        location: path or URL.
        index_path: its index file.
        stamp: size, mtime and digest when the data set was opened.
    """

    location: str
    index_path: Path
    stamp: ShardStamp


class _OpenShard:
    """An open shard of the recorded size, time and index; a remote one was compared when it was fetched."""

    def __init__(self, shard: ShardReference, cache: ShardCache | None, memory_map: bool):
        index = load_shard_index(shard.location, shard.index_path)
        if index is None or index.stamp.digest != shard.stamp.digest or not _is_unchanged(shard, index):
            # this node has never opened it, the index has been removed, or the shard has been written since
            index = make_shard_index(shard.location, shard.index_path, cache, allow_damage=True)
            if index.stamp.digest != shard.stamp.digest:
                raise DataError(f"shard {shard.location} changed since it was opened; restore it, or start again")
        self.index = index
        self.table = index.map_table()
        self.spans = np.asarray(self.table["spans"])  # a plain view, several times as quick to index
        self.columns = {field: column for column, field in enumerate(index.fields)}
        self.size = shard.stamp.size
        self.copy: CachedShard | None = None
        if is_remote(shard.location):
            assert cache is not None
            self.copy = cache.open(shard.location, self.size, shard.stamp.digest)
            self.descriptor = self.copy.descriptor
        else:
            self.descriptor = os.open(shard.location, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        size = os.fstat(self.descriptor).st_size
        if size != self.size:
            self._close_descriptor()
            raise DataError(
                f"shard {shard.location} changed since its index was built ({self.size} bytes then, {size} now); "
                f"restore it, or delete {shard.index_path} to rebuild the index"
            )
        self.map = mmap.mmap(self.descriptor, 0, prot=mmap.PROT_READ) if memory_map else None

    def read(self, spans: list[list[int]]) -> list[bytes]:
        """Return the bytes at some offsets, of some sizes and, where the index has them, of some checksums.

        Raises:
            OSError: they cannot be read.
            ValueError: the shard is shorter than it was, or its bytes are others.
        """
        if self.map is None:
            contents = [os.pread(self.descriptor, span[1], span[0]) for span in spans]
            if any(len(content) < span[1] for content, span in zip(contents, spans)):
                raise ValueError("the shard ends in the middle of it")
        else:
            # touching a map beyond the end of its file kills the process
            if os.fstat(self.descriptor).st_size < self.size:
                raise ValueError("the shard has been cut while it was in use")
            contents = [self.map[span[0] : span[0] + span[1]] for span in spans]
        if self.index.has_checksums and any(
            content_checksum(content) != span[2] for content, span in zip(contents, spans)
        ):
            raise ValueError("its bytes are not those that were indexed")
        return contents

    def close(self) -> None:
        if self.map is not None:
            self.map.close()
        self._close_descriptor()

    def _close_descriptor(self) -> None:
        if self.copy is not None:
            self.copy.close()
        else:
            os.close(self.descriptor)


def _is_unchanged(shard: ShardReference, index: ShardIndex) -> bool:
    """Return whether a local shard has the size and mtime of its index, or those with which the data set was opened."""
    if is_remote(shard.location):
        return True
    status = os.stat(shard.location)
    return (status.st_size, status.st_mtime_ns) in [
        (stamp.size, stamp.mtime_ns) for stamp in (index.stamp, shard.stamp)
    ]


_READERS: "WeakSet[ShardReader]" = WeakSet()  # of this process: all hold what fills the cache


class ShardReader:
    """Reads members of shards by position; shards are opened when first needed, the least recently used closed.

    Safe to pickle and to fork.

    Args:
        shard: returns what is known of shard number i.
        cache: where remote shards are kept on this node.
        memory_map: read through memory maps, which is quicker; but when a file system fails to deliver a page, the
            process dies. Otherwise read by calls, which are then repeated.
        max_open: shards that are kept open; reading is slow with fewer than the shards that samples are mixed among.
    """

    def __init__(
        self,
        shard: Callable[[int], ShardReference],
        cache: ShardCache | None = None,
        memory_map: bool = True,
        max_open: int = MAX_OPEN_SHARDS,
    ):
        self._shard = shard
        self._cache = cache
        self._memory_map = memory_map
        self._max_open = max_open
        self._failed: dict[int, tuple[float, DataError]] = {}
        self._open: OrderedDict[int, _OpenShard] = OrderedDict()

    def read(self, shard: int, row: int, field: str) -> bytes:
        """Return a field of sample `row` of shard number `shard` as it is stored.

        Raises:
            DataError: it cannot be read; names shard, key and reason.
        """
        try:
            for wait in RETRY_WAITS:
                try:
                    return self._read_once(shard, row, field)
                except OSError:  # a network file system may be back in a moment, with a new handle
                    if shard in self._open:
                        self._open.pop(shard).close()
                    time.sleep(wait)
            return self._read_once(shard, row, field)
        except (OSError, ValueError) as error:
            if shard not in self._open:
                location = self._shard(shard).location
                reason = getattr(error, "strerror", None) or error
                failure = DataError(f"cannot read shard {location}: {reason}; restore it and start again")
                self._failed[shard] = (time.monotonic(), failure)
                raise failure from error
            raise DataError(
                f"{self.name(shard, row)} cannot be read: {error}; copy or write the shard again"
            ) from error

    def read_many(self, shard: int, rows: np.ndarray, field: str) -> list[bytes]:
        """Return a field of samples `rows`, int64 `[n]`, of shard number `shard`; errors as in `read`."""
        try:
            opened = self._opened(shard)
            spans = opened.spans[rows, opened.columns[field]].tolist()
            if all(span[0] >= 0 for span in spans):
                return opened.read(spans)
        except (OSError, KeyError, ValueError):
            pass
        return [self.read(shard, int(row), field) for row in rows]  # finds out what is wrong, and tries again

    def name(self, shard: int, row: int) -> str:
        """Return "shard PATH, sample KEY" for messages."""
        try:
            return describe_sample(self._shard(shard).location, self._opened(shard).table[row])
        except (OSError, DataError):
            return f"shard {self._shard(shard).location}, sample in row {row}"

    def _read_once(self, shard: int, row: int, field: str) -> bytes:
        opened = self._opened(shard)
        record = opened.table[row]
        column = opened.columns.get(field)
        if column is None or record["spans"][column, 0] < 0:
            raise DataError(f"{self.name(shard, row)}: {opened.index.explain_absence(record, field)}")
        return opened.read([record["spans"][column].tolist()])[0]

    def _opened(self, shard: int) -> _OpenShard:
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        failed_at, error = self._failed.get(shard, (-FAILED_SHARD_SECONDS, None))
        if error is not None and time.monotonic() - failed_at < FAILED_SHARD_SECONDS:
            raise DataError(*error.args)
        try:
            opened = self._open_with_room(shard)
        except DataError as error:
            self._failed[shard] = (time.monotonic(), error)
            raise
        self._open[shard] = opened
        _READERS.add(self)
        if len(self._open) > self._max_open:
            self._close_oldest()
        return opened

    def _open_with_room(self, shard: int) -> _OpenShard:
        deadline = time.monotonic() + CACHE_FULL_TIMEOUT
        while True:
            try:
                return _OpenShard(self._shard(shard), self._cache, self._memory_map)
            except CacheFull:
                holder = max(_READERS, key=lambda reader: len(reader._open), default=self)
                if holder._open:
                    holder._close_oldest()
                elif time.monotonic() < deadline:
                    time.sleep(RETRY_WAITS[-1])
                else:
                    raise

    def _close_oldest(self) -> None:
        self._open.popitem(last=False)[1].close()

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_open": OrderedDict(), "_failed": {}}

    def __del__(self) -> None:
        for opened in self._open.values():
            opened.close()
