"""Whole copies of remote shards on a disk of this node, shared by all its processes."""

import fcntl
import math
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from nar_scale.data.storage.locks import is_at, locked, locked_directory
from nar_scale.data.storage.remote import Unavailable, receive, shown, with_retries
from nar_scale.errors import ConfigError, DataError

# hash of the URL, digest of the content, name of the shard; so that a copy of an older version is never taken
COPY_NAME = re.compile(r"[0-9a-f]{32}-[0-9a-f]{32}-.*", re.DOTALL)
WORK_NAME = re.compile(r"\.([0-9a-f]{32})\.(?:lock|part)")
DIGEST = re.compile(r"[0-9a-f]{32}")
MAX_NAME = 100


def cache_bytes(gib: float) -> int:
    """Return what a cache of so many GiB may hold, in bytes.

    Raises:
        ConfigError: it is no number above 0, or an infinite one.
    """
    if not (math.isfinite(gib) and gib > 0):
        raise ConfigError(f"a cache of {gib} GiB: give data.cache_gib (--cache-gib) a finite number above 0")
    return int(gib * 2**30)


class CacheFull(DataError):
    """All that is in the cache is in use; there may be room when the caller has closed some shards."""


class CachedShard:
    """A shard that lies on this node, and stays there until it is closed.

    Attributes:
        path: where.
        descriptor: a file descriptor open for reading; -1 once closed.
    """

    def __init__(self, path: Path, descriptor: int):
        self.path = path
        self.descriptor = descriptor
        self._owner = os.getpid()

    def close(self) -> None:
        """Let go of the shard. A process that has inherited it by `fork` lets go of its own descriptor alone."""
        if self.descriptor < 0:
            return
        descriptor, self.descriptor = self.descriptor, -1
        if os.getpid() == self._owner:
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # children hold the same lock, and would keep it
        os.close(descriptor)

    def __del__(self) -> None:
        self.close()


class ShardCache:
    """Copies of remote shards, the least recently used making room for new ones.

    Any number of processes may share a directory; each shard is fetched by one of them. The processes find each
    other by `flock`, so the directory must be on a disk of this node. A process may be killed at any time: what it
    leaves behind is removed when the next shard is fetched. Safe to pickle and to fork.

    Args:
        directory: where the copies are, made when needed. Other files in it are left alone.
        max_bytes: most that copies and fetches in progress take together.
        storage_options: passed to fsspec.
        attempts: how often a fetch is tried.
        timeout: seconds without a byte before an attempt is given up.
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
        """Return a shard, fetched if it is not here.

        Args:
            url: where it is.
            size: bytes that it must have.
            digest: what blake2b makes of all its bytes, 32 hexadecimal digits, as in `stamp_shard`. Without it, the
                copy that is here is taken for the shard.

        Raises:
            CacheFull: there is no room as long as other shards are in use.
            DataError: it cannot be fetched, has another size or content, or the cache directory cannot be used.
            UserError: the package for this kind of store is not installed.
        """
        if digest is not None and not DIGEST.fullmatch(digest):
            raise DataError(f"{shown(url)}: {digest!r} is not a digest; delete its index file to build it again")
        wanted = _Wanted(url, size, digest)
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            while True:
                copy = self._find(wanted)
                if copy is not None:
                    return copy
                with locked(self.directory / f".{wanted.key}.lock"):
                    # somebody else may have fetched it meanwhile
                    copy = self._find(wanted) or _open_copy(self._fetch(wanted), None)
                if copy is not None:
                    return copy
        except OSError as error:
            raise DataError(
                f"cannot keep shards in {self.directory}: {error.strerror or error}; set data.cache_directory to a "
                "directory that can be written, on a disk of this node with room for data.cache_gib"
            ) from error

    def _find(self, wanted: "_Wanted") -> CachedShard | None:
        if wanted.digest is not None:
            return _open_copy(self.directory / wanted.name(wanted.digest), wanted.size)
        copies = [(status.st_mtime_ns, path) for path, status in _files(self.directory, f"{wanted.key}-")]
        for _, path in sorted(copies, reverse=True):
            copy = _open_copy(path, wanted.size)
            if copy is not None:
                return copy
        return None

    def _fetch(self, wanted: "_Wanted") -> Path:
        part = self.directory / f".{wanted.key}.part"
        try:
            with open(part, "wb") as file:
                arrival = _Arrival(self, wanted, file)
                if wanted.size is not None:
                    arrival.reserve(wanted.size)
                digest = with_retries(arrival.attempt, wanted.url, self.attempts)
                file.flush()
                os.fsync(file.fileno())
            path = self.directory / wanted.name(digest)
            with locked_directory(self.directory):  # others who count must see it once
                os.replace(part, path)
            return path
        finally:
            part.unlink(missing_ok=True)


class _Wanted:
    def __init__(self, url: str, size: int | None, digest: str | None):
        self.url, self.size, self.digest = url, size, digest
        self.key = blake2b(url.encode(), digest_size=16).hexdigest()
        name = PurePosixPath(urlsplit(url).path).name
        self._name = re.sub(r"[^A-Za-z0-9_.-]", "_", name)[-MAX_NAME:]

    def name(self, digest: str) -> str:
        return f"{self.key}-{digest}-{self._name}"

    def changed(self, reason: str) -> str:
        return (
            f"shard {shown(self.url)} changed since its index was built ({reason}); restore it, or delete its index "
            "file to build the index again"
        )


class _Arrival:
    """A shard on its way into the cache. Its file is given its full length at once: that is the reservation."""

    def __init__(self, cache: ShardCache, wanted: _Wanted, file: Any):
        self._cache, self._wanted, self._file = cache, wanted, file
        self._reserved: int | None = None
        self._announced: int | None = None
        self._received = 0
        self._digests_seen: set[str] = set()

    def attempt(self) -> str:
        """Fetch the shard once and return its digest."""
        receive(self._wanted.url, self._cache.storage_options, self._cache.timeout, self._begin, self._take)
        assert self._reserved is not None
        if self._received < self._reserved:
            reason = f"the transfer ended after {self._received} of {self._reserved} bytes"
            raise Unavailable(reason, None if self._announced else self._wanted.changed(reason))
        digest = self._hasher.hexdigest()
        if self._wanted.digest in (None, digest):
            return digest
        verdict = self._wanted.changed("same size, other content")
        if digest in self._digests_seen:  # twice the same is no fault of the network
            raise DataError(verdict)
        self._digests_seen.add(digest)
        raise Unavailable("the content is wrong", verdict)

    def reserve(self, size: int) -> None:
        """Make room for a shard of `size` bytes."""
        if size == self._reserved:
            return
        cache, url = self._cache, shown(self._wanted.url)
        if size > cache.max_bytes:
            raise DataError(
                f"shard {url} of {size} bytes is larger than the cache of {cache.max_bytes}; raise data.cache_gib"
            )
        self._file.truncate(0)
        with locked_directory(cache.directory):
            if not _make_room(cache.directory, cache.max_bytes - size):
                raise CacheFull(
                    f"no room for shard {url} of {size} bytes: all that the cache in {cache.directory} holds of "
                    f"{cache.max_bytes} bytes is in use; raise data.cache_gib or lower data.shuffle_window"
                )
            if size:
                os.posix_fallocate(self._file.fileno(), 0, size)
        self._reserved = size

    def _begin(self, announced: int | None) -> None:
        wanted = self._wanted
        if None not in (announced, wanted.size) and announced != wanted.size:
            reason = f"{wanted.size} bytes then, {announced} now"
            raise Unavailable(f"its size is {announced} instead of {wanted.size} bytes", wanted.changed(reason))
        size = announced if wanted.size is None else wanted.size
        if size is None:
            raise DataError(
                f"the server does not say how long shard {shown(wanted.url)} is; put its index file beside it, or "
                "copy the shards to a server that does"
            )
        self.reserve(size)
        self._announced = announced
        self._received = 0
        self._hasher = blake2b(digest_size=16)
        self._file.seek(0)

    def _take(self, block: bytes) -> None:
        self._received += len(block)
        assert self._reserved is not None
        if self._received > self._reserved:
            reason = f"more than {self._reserved} bytes"
            raise Unavailable(f"the transfer has {reason}", self._wanted.changed(reason))
        self._hasher.update(block)
        self._file.write(block)


def _make_room(directory: Path, most: int) -> bool:
    """Remove what killed processes left, then the least recently used copies, until no more than `most` bytes are left.

    Returns:
        whether this could be done.
    """
    used = 0
    copies = []
    for path, status in _files(directory):
        work = WORK_NAME.fullmatch(path.name)
        if work is None:
            copies.append((status.st_atime_ns, path, status.st_size))
        elif _remove_leftovers(directory, work[1]):
            continue
        used += status.st_size
    for _, path, size in sorted(copies):
        if used <= most:
            break
        if _remove_unused(path):
            used -= size
    return used <= most


def _remove_leftovers(directory: Path, key: str) -> bool:
    with suppress(BlockingIOError), locked(directory / f".{key}.lock", wait=False):
        (directory / f".{key}.part").unlink(missing_ok=True)
        return True
    return False


def _remove_unused(path: Path) -> bool:
    with suppress(FileNotFoundError):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
        except BlockingIOError:
            return False
        finally:
            os.close(descriptor)
    return True


def _open_copy(path: Path, size: int | None) -> CachedShard | None:
    """Open a copy and keep it from being removed; None if it is not there or has another size."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    copy = CachedShard(path, descriptor)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    status = os.fstat(descriptor)
    if not is_at(descriptor, path) or size not in (None, status.st_size):
        copy.close()
        return None
    with suppress(PermissionError):  # it is another user's
        # the time of access says which are used; that of modification stays, it would look like a change
        os.utime(descriptor, ns=(time.time_ns(), status.st_mtime_ns))
    return copy


def _files(directory: Path, prefix: str = "") -> Iterator[tuple[Path, os.stat_result]]:
    for name in os.listdir(directory):
        if name.startswith(prefix) and (COPY_NAME.fullmatch(name) or WORK_NAME.fullmatch(name)):
            with suppress(FileNotFoundError):
                yield directory / name, (directory / name).stat()
