"""Exclusive locks between the processes of a host.

They are `flock` locks of the package filelock: the kernel takes them back when a process ends, however it ends. Shared
locks, which filelock does not offer for `flock`, are those of `cache_files`.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout, lock_descriptor, unlock_descriptor

WITHOUT_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)  # from file systems mounted without them
LOCK_FILE_MODE = 0o666  # other users of a shared directory must be able to open a lock file that a killed process left
DIRECTORY_POLL_SECONDS = 0.01


@contextmanager
def exclusive_lock(path: Path, wait: bool = True) -> Iterator[None]:
    """Hold an exclusive lock on a lock file, which is made in an existing directory and removed afterwards.

    Args:
        path: the lock file.
        wait: wait until no other process or thread holds the lock.

    Raises:
        BlockingIOError: the lock is held and `wait` is false.
        OSError: the file cannot be made, or its file system has no locks.
    """
    lock = FileLock(path, mode=LOCK_FILE_MODE, blocking=wait, fallback_to_soft=False)
    try:
        held = lock.acquire()
    except Timeout:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN), str(path)) from None
    with held:
        try:
            yield
        finally:
            # while the lock is held: a process that waits for the file sees that it is gone, and makes a new one
            path.unlink(missing_ok=True)


@contextmanager
def exclusive_lock_if_supported(path: Path, wait: bool = True) -> Iterator[None]:
    """Do as `exclusive_lock` does, or nothing on a file system without locks."""
    with ExitStack() as stack:
        try:
            stack.enter_context(exclusive_lock(path, wait))
        except OSError as error:
            if error.errno not in WITHOUT_LOCKS:
                raise
        yield


@contextmanager
def directory_lock(directory: Path) -> Iterator[None]:
    """Hold an exclusive lock on a directory of this host; no lock file is made in it.

    Raises:
        OSError: the directory does not exist, or its file system has no locks.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        lock_descriptor(descriptor, poll_interval=DIRECTORY_POLL_SECONDS)
        try:
            yield
        finally:
            unlock_descriptor(descriptor)  # not left to closing it: a process forked meanwhile would keep the lock
    finally:
        os.close(descriptor)
