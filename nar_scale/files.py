"""Files that are written atomically."""

import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` to `path` through a temporary file in the same directory, synced and renamed.

    Any number of processes may write the same path at once: a reader sees one of the whole contents. A symbolic link is
    followed and stays. What is there and no file, such as a pipe or a device, is written to and not replaced.

    Raises:
        OSError: the directory is missing, full or not writable; nothing is left behind.
    """
    if path.exists() and not path.is_file():
        with open(path, "wb") as file:
            file.write(content)
        return
    path = Path(os.path.realpath(path))
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def create_atomically(path: Path, content: bytes) -> None:
    """Write `content` to `path` unless it exists; of several processes at once one does, and none sees half of it.

    On a file system without hard links a process may see an empty file for a moment.

    Raises:
        OSError: the directory is missing, full or not writable; nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        write_atomically(temporary, content)
        with suppress(FileExistsError):
            try:
                os.link(temporary, path)
            except OSError as error:
                if error.errno not in NO_LINKS:
                    raise
                with open(path, "xb") as file:
                    file.write(content)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def removed_if_empty(path: Path) -> Iterator[None]:
    """A `with` block at whose end `path` and its parents are removed where they were missing before and are empty."""
    missing = [each for each in (path, *path.parents) if not each.exists()]
    try:
        yield
    finally:
        for each in missing:
            with suppress(OSError):  # it holds something, or was not made
                each.rmdir()


def keep_as_damaged(path: Path) -> Path:
    """Rename a file or directory that cannot be used to `NAME.damaged-N`, with the first N that is free; returns that.

    Raises:
        OSError: its directory is not writable.
    """
    names = (path.with_name(f"{path.name}.damaged-{number}") for number in count(1))
    kept = next(name for name in names if not os.path.lexists(name))
    os.replace(path, kept)
    return kept


def sync_directory(path: Path) -> None:
    """Make renames in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)
_REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "remove files, or have the quota raised",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EROFS: "mount it writable",
    errno.EACCES: "change its permissions",
    errno.EPERM: "change its permissions",
    errno.ENOTDIR: "restore the directory",
    errno.ENOENT: "restore the directory",
    errno.EIO: "repair the disk or network",
    errno.EISDIR: "move that directory away",
    errno.EEXIST: "move that file away",
}


def remedy_for(error: OSError) -> str | None:
    """What helps against an error in writing, in a few words; None for one that says nothing to the user."""
    return _REMEDIES.get(error.errno or 0)
