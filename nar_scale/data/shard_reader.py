"""Reading samples out of indexed shards, a bounded number of them open at a time."""

import os
import time
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from nar_scale.data.npy import decode_npy
from nar_scale.data.shard_index import ShardIndex
from nar_scale.errors import DataError

MAX_OPEN_SHARDS = 32
RETRY_WAITS = (0.1, 1.0)  # seconds before the second and the third attempt


class _OpenShard:
    def __init__(self, index: ShardIndex):
        self.table = index.read_table()
        self.descriptor = os.open(index.shard, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))

    def close(self) -> None:
        os.close(self.descriptor)


class ShardReader:
    """Reads members of shards by position; shards are opened when first needed, the least recently used closed.

    Data is read with `pread` and not through a memory map: a file that is cut while in use is then an error that
    names the sample, where a memory map would kill the process. Safe to pickle and to fork.

    Args:
        indexes: the shards, in order.
    """

    def __init__(self, indexes: Sequence[ShardIndex]):
        self._indexes = indexes
        self._open: OrderedDict[int, _OpenShard] = OrderedDict()

    def read(self, shard: int, row: int) -> np.ndarray:
        """Return the array of sample `row` of shard number `shard`, read-only, of whatever shape and dtype it has.

        Raises:
            DataError: naming shard, key and reason, if it cannot be read.
        """
        try:
            return decode_npy(self._read_member(shard, row))
        except (OSError, ValueError) as error:
            raise self._unreadable(shard, row, error) from error

    def read_bytes(self, shard: int, row: int) -> bytes:
        """Return the content of sample `row` of shard number `shard` as it is.

        Raises:
            DataError: naming shard, key and reason, if it cannot be read.
        """
        try:
            return self._read_member(shard, row)
        except (OSError, ValueError) as error:
            raise self._unreadable(shard, row, error) from error

    def name(self, shard: int, row: int) -> str:
        """Return "shard PATH, sample KEY" for messages."""
        key = self._opened(shard).table[row]["key"].decode("utf-8", errors="replace")
        return f"shard {self._indexes[shard].shard}, sample {key}"

    def _unreadable(self, shard: int, row: int, error: Exception) -> DataError:
        return DataError(f"{self.name(shard, row)} cannot be read: {error}; copy or write the shard again")

    def _read_member(self, shard: int, row: int) -> bytes:
        for wait in RETRY_WAITS:
            try:
                return self._read_member_once(shard, row)
            except OSError:  # a network file system may be back in a moment, with a new handle
                self._open.pop(shard).close()
                time.sleep(wait)
        return self._read_member_once(shard, row)

    def _read_member_once(self, shard: int, row: int) -> bytes:
        opened = self._opened(shard)
        record = opened.table[row]
        size = int(record["size"])
        content = os.pread(opened.descriptor, size, int(record["offset"]))
        if len(content) < size:
            raise ValueError("the shard ends in the middle of it")
        return content

    def _opened(self, shard: int) -> _OpenShard:
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        index = self._indexes[shard]
        try:
            opened = _OpenShard(index)
        except OSError as error:
            raise DataError(f"cannot read shard {index.shard}: {error.strerror}; restore it and start again") from error
        self._open[shard] = opened
        if len(self._open) > MAX_OPEN_SHARDS:
            self._open.popitem(last=False)[1].close()
        return opened

    def __getstate__(self) -> dict[str, object]:
        return {"_indexes": self._indexes, "_open": OrderedDict()}

    def __del__(self) -> None:
        for opened in self._open.values():
            opened.close()
