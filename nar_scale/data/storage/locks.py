"""Locks between processes, by `flock`: the kernel takes them back when a process ends, however it ends."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

WITHOUT_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)  # from file systems mounted without them


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[None]:
    """Hold a lock file, which is removed afterwards.

    Raises:
        BlockingIOError: it is held and `wait` is false.
        OSError: the file cannot be made, or its file system has no locks.
    """
    while True:
        descriptor = _open(path)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            if is_at(descriptor, path):
                try:
                    yield
                    return
                finally:
                    path.unlink(missing_ok=True)
        finally:
            # not left to the descriptor: a process forked meanwhile would keep the lock
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)


@contextmanager
def locked_if_possible(path: Path, wait: bool = True) -> Iterator[None]:
    """Do as `locked` does, or nothing on a file system without locks."""
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(path, wait))
        except OSError as error:
            if error.errno not in WITHOUT_LOCKS:
                raise
        yield


def _open(path: Path) -> int:
    flags = os.O_CREAT | os.O_CLOEXEC
    try:
        return os.open(path, flags | os.O_RDWR, 0o666)  # a network file system locks what can be written alone
    except PermissionError:  # it is another user's
        return os.open(path, flags | os.O_RDONLY, 0o666)


@contextmanager
def locked_directory(directory: Path) -> Iterator[None]:
    """Hold a lock on a directory of this node."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def is_at(descriptor: int, path: Path) -> bool:
    """Tell whether an open file is still the one at a path."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
