"""Files that are written atomically."""

import errno
import os
import uuid
from contextlib import suppress
from pathlib import Path


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` to `path` through a temporary file in the same directory, synced and renamed.

    Any number of processes may write the same path at once: a reader sees one of the whole contents.

    Raises:
        OSError: the directory is missing, full or not writable; nothing is left behind.
    """
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

    Raises:
        OSError: the directory is missing, full or not writable; nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        write_atomically(temporary, content)
        with suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def sync_directory(path: Path) -> None:
    """Make renames in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
}


def remedy_for(error: OSError) -> str | None:
    """What helps against an error in writing, in a few words; None for one that says nothing to the user."""
    return _REMEDIES.get(error.errno or 0)
