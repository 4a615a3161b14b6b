"""Whole copies of remote shards on a disk of this node, shared by all its processes."""

import math
import os
import re
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO

from nar_scale.data.storage.cache_files import CachedShard, CacheNames, make_room, open_copy, open_newest_copy
from nar_scale.data.storage.errors import TransientError
from nar_scale.data.storage.locks import directory_lock, exclusive_lock
from nar_scale.data.storage.remote import receive
from nar_scale.data.storage.retries import with_retries
from nar_scale.data.storage.urls import redacted
from nar_scale.errors import ConfigError, DataError

DIGEST = re.compile(r"[0-9a-f]{32}")


def cache_bytes(gib: float) -> int:
    """Return the size of a cache of so many GiB in bytes.

    Raises:
        ConfigError: the number is not finite and above 0.
    """
    if not (math.isfinite(gib) and gib > 0):
        raise ConfigError(f"a cache of {gib} GiB: give data.cache_gib (--cache-gib) a finite number above 0")
    return int(gib * 2**30)


class CacheFull(DataError):
    """All that is in the cache is in use; there may be room when the caller has closed some shards."""


class ShardCache:
    """Copies of remote shards; the least recently used are removed to make room for new ones.

    Any number of processes may share a directory; each shard is fetched by one of them, and the others wait. The
    processes exclude each other by `flock`, so the directory must be on a disk of this node. A process may be killed at
    any time: what it leaves behind is removed when the next shard is fetched. Safe to pickle and to fork.

    Args:
        directory: where the copies are, made when needed. Other files in it are not touched.
        max_bytes: the most that copies and fetches in progress take together.
        storage_options: arguments of the file system of fsspec.
        attempts: how often a fetch is tried.
        timeout: seconds without a byte after which an attempt is given up.
    """

    def __init__(
        self,
        directory: str | Path,
        max_bytes: int,
        storage_options: Mapping[str, Any] | None = None,
        attempts: int = 5,
        timeout: float = 60.0,
    ):
        self.directory = Path(directory)
        self.max_bytes = max_bytes
        self.storage_options = dict(storage_options or {})
        self.attempts = attempts
        self.timeout = timeout

    def open(self, url: str, size: int | None = None, digest: str | None = None) -> CachedShard:
        """Return a shard, fetched if there is no copy of it.

        Args:
            url: where it is.
            size: bytes that it must have.
            digest: blake2b of all its bytes, 32 hexadecimal digits, as in `stamp_shard`. Without it, the newest copy
                is taken for the shard.

        Raises:
            CacheFull: there is no room as long as other shards are in use.
            DataError: it cannot be fetched, has another size or content, or the cache directory cannot be used.
            UserError: the package for this kind of store is not installed.
        """
        if digest is not None and not DIGEST.fullmatch(digest):
            raise DataError(f"{redacted(url)}: {digest!r} is not a digest; delete its index file to build it again")
        request = _Request(url, size, digest)
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            while True:
                copy = self._find(request)
                if copy is not None:
                    return copy
                with exclusive_lock(self.directory / request.names.lock):
                    # another process may have fetched it in the meantime
                    copy = self._find(request) or open_copy(self._fetch(request), None)
                if copy is not None:
                    return copy
        except OSError as error:
            raise DataError(
                f"cannot keep shards in {self.directory}: {error.strerror or error}; set data.cache_directory to a "
                "directory that can be written, on a disk of this node with room for data.cache_gib"
            ) from error

    def _find(self, request: "_Request") -> CachedShard | None:
        if request.digest is not None:
            return open_copy(self.directory / request.names.copy(request.digest), request.size)
        return open_newest_copy(self.directory, request.names.key, request.size)

    def _fetch(self, request: "_Request") -> Path:
        partial = self.directory / request.names.partial
        try:
            with open(partial, "wb") as file:
                download = _Download(self, request, file)
                if request.size is not None:
                    download.reserve(request.size)
                digest = with_retries(download.attempt, request.url, self.attempts)
                file.flush()
                os.fsync(file.fileno())
            path = self.directory / request.names.copy(digest)
            with directory_lock(self.directory):  # others who count must see it once
                os.replace(partial, path)
            return path
        finally:
            partial.unlink(missing_ok=True)


class _Request:
    """A shard that is asked for, and what is known of it."""

    def __init__(self, url: str, size: int | None, digest: str | None):
        self.url, self.size, self.digest = url, size, digest
        self.names = CacheNames(url)

    def changed(self, reason: str) -> str:
        """Return the message for a shard that is not the one that was indexed."""
        return (
            f"shard {redacted(self.url)} changed since its index was built ({reason}); restore it, or delete its index "
            "file to build the index again"
        )


class _Download:
    """A shard that is being fetched. Its file is given its full length at once: that reserves the room."""

    def __init__(self, cache: ShardCache, request: _Request, file: BinaryIO):
        self._cache, self._request, self._file = cache, request, file
        self._reserved: int | None = None
        self._announced: int | None = None
        self._received = 0
        self._digests_seen: set[str] = set()

    def attempt(self) -> str:
        """Fetch the shard once and return its digest."""
        request = self._request
        receive(request.url, self._cache.storage_options, self._cache.timeout, self._start, self._write)
        assert self._reserved is not None
        if self._received < self._reserved:
            reason = f"the transfer ended after {self._received} of {self._reserved} bytes"
            raise TransientError(reason, None if self._announced else request.changed(reason))
        digest = self._hasher.hexdigest()
        if request.digest in (None, digest):
            return digest
        message = request.changed("same size, other content")
        if digest in self._digests_seen:  # twice the same is no fault of the network
            raise DataError(message)
        self._digests_seen.add(digest)
        raise TransientError("the content is wrong", message)

    def reserve(self, size: int) -> None:
        """Make room for a shard of `size` bytes."""
        if size == self._reserved:
            return
        cache, url = self._cache, redacted(self._request.url)
        if size > cache.max_bytes:
            raise DataError(
                f"shard {url} of {size} bytes is larger than the cache of {cache.max_bytes}; raise data.cache_gib"
            )
        self._file.truncate(0)
        with directory_lock(cache.directory):
            if not make_room(cache.directory, cache.max_bytes - size):
                raise CacheFull(
                    f"no room for shard {url} of {size} bytes: all that the cache in {cache.directory} holds of "
                    f"{cache.max_bytes} bytes is in use; raise data.cache_gib or lower data.shuffle_window"
                )
            if size:
                os.posix_fallocate(self._file.fileno(), 0, size)
        self._reserved = size

    def _start(self, announced: int | None) -> None:
        request = self._request
        if None not in (announced, request.size) and announced != request.size:
            reason = f"{request.size} bytes then, {announced} now"
            raise TransientError(f"its size is {announced} instead of {request.size} bytes", request.changed(reason))
        size = announced if request.size is None else request.size
        if size is None:
            raise DataError(
                f"the server does not say how long shard {redacted(request.url)} is; put its index file beside it, or "
                "copy the shards to a server that does"
            )
        self.reserve(size)
        self._announced = announced
        self._received = 0
        self._hasher = blake2b(digest_size=16)
        self._file.seek(0)

    def _write(self, block: bytes) -> None:
        self._received += len(block)
        assert self._reserved is not None
        if self._received > self._reserved:
            reason = f"more than {self._reserved} bytes"
            raise TransientError(f"the transfer has {reason}", self._request.changed(reason))
        self._hasher.update(block)
        self._file.write(block)
