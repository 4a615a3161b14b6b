"""The files of a node's shard cache: how they are named, opened, counted and removed.

A copy is in use while a process holds a shared `flock` on it, by `fcntl` since filelock has exclusive locks only.
"""

import fcntl
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from nar_scale.data.storage.locks import exclusive_lock

# hash of the URL, digest of the content, name of the shard; so that a copy of an older version is never taken
COPY_NAME = re.compile(r"[0-9a-f]{32}-[0-9a-f]{32}-.*", re.DOTALL)
WORK_NAME = re.compile(r"\.([0-9a-f]{32})\.(?:lock|part)")
MAX_NAME_LETTERS = 100


class CachedShard:
    """A shard that lies on this node, and stays there until it is closed.

    Attributes:
        path: the file.
        descriptor: a file descriptor open for reading; -1 once closed.
    """

    def __init__(self, path: Path, descriptor: int):
        self.path = path
        self.descriptor = descriptor
        self._owner = os.getpid()

    def close(self) -> None:
        """Let the shard be removed. A process that has inherited it by `fork` closes only its own descriptor."""
        if self.descriptor < 0:
            return
        descriptor, self.descriptor = self.descriptor, -1
        if os.getpid() == self._owner:
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # children hold the same lock, and would keep it
        os.close(descriptor)

    def __del__(self) -> None:
        if not sys.is_finalizing():  # then the system closes it, and `os` may be gone already
            self.close()


class CacheNames:
    """The names that the files of a shard have in the cache directory.

    Attributes:
        key: 32 hexadecimal digits, of the URL.
        lock: the lock file of those who fetch the shard.
        partial: the shard while it is being fetched.
    """

    def __init__(self, url: str):
        self.key = blake2b(url.encode(), digest_size=16).hexdigest()
        self.lock, self.partial = f".{self.key}.lock", f".{self.key}.part"
        name = PurePosixPath(urlsplit(url).path).name
        self._shard_name = re.sub(r"[^A-Za-z0-9_.-]", "_", name)[-MAX_NAME_LETTERS:]

    def copy(self, digest: str) -> str:
        """Return the name of a copy whose bytes have a digest of 32 hexadecimal digits."""
        return f"{self.key}-{digest}-{self._shard_name}"


def open_copy(path: Path, size: int | None) -> CachedShard | None:
    """Open a copy and keep it from being removed; None if it is missing or has another size than `size` bytes."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    copy = CachedShard(path, descriptor)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    status = os.fstat(descriptor)
    if not _is_at(descriptor, path) or size not in (None, status.st_size):
        copy.close()
        return None
    with suppress(PermissionError):  # it is another user's
        # the time of access says which are used; that of modification stays, it would look like a change
        os.utime(descriptor, ns=(time.time_ns(), status.st_mtime_ns))
    return copy


def open_newest_copy(directory: Path, key: str, size: int | None) -> CachedShard | None:
    """Open the newest copy of the shard with a `key`, of whatever content; None if there is none of `size` bytes."""
    copies = [(status.st_mtime_ns, path) for path, status in _cache_files(directory, f"{key}-")]
    for _, path in sorted(copies, reverse=True):
        copy = open_copy(path, size)
        if copy is not None:
            return copy
    return None


def make_room(directory: Path, max_bytes: int) -> bool:
    """Remove what killed processes left, and then the copies least recently used that nobody has open.

    Args:
        directory: of the cache, which the caller has locked.
        max_bytes: the most that copies and fetches in progress may take together.

    Returns:
        Whether they take no more than that now.
    """
    used = 0
    copies = []
    for path, status in _cache_files(directory):
        work = WORK_NAME.fullmatch(path.name)
        if work is None:
            copies.append((status.st_atime_ns, path, status.st_size))
        elif _remove_leftovers(directory, work[1]):
            continue
        used += status.st_size
    for _, path, size in sorted(copies):
        if used <= max_bytes:
            break
        if _remove_unused(path):
            used -= size
    return used <= max_bytes


def _cache_files(directory: Path, prefix: str = "") -> Iterator[tuple[Path, os.stat_result]]:
    for name in os.listdir(directory):
        if name.startswith(prefix) and (COPY_NAME.fullmatch(name) or WORK_NAME.fullmatch(name)):
            with suppress(FileNotFoundError):
                yield directory / name, (directory / name).stat()


def _remove_leftovers(directory: Path, key: str) -> bool:
    """Remove an unfinished fetch unless its process is alive, and return whether it was not."""
    with suppress(BlockingIOError), exclusive_lock(directory / f".{key}.lock", wait=False):
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


def _is_at(descriptor: int, path: Path) -> bool:
    """Return whether an open file is still the one at a path."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
