"""Directories that are written atomically."""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nar_scale.errors import CheckpointError
from nar_scale.files import remedy_for, sync_directory
from nar_scale.progress import kept_at_interrupt

_WRITING = ".writing-"
_ABANDONED_SECONDS = 3600


@contextmanager
def written_whole(output: Path) -> Iterator[Path]:
    """A directory to write into, which is renamed to `output` at the end, or removed if an error comes before.

    Raises:
        CheckpointError: the output exists or cannot be written.
    """
    if output.exists():
        raise CheckpointError(f"{output} exists already; remove it or choose another --output")
    writing = None
    try:
        writing = make_writing_directory(output)
        with kept_at_interrupt(f"{output} was not written"):
            yield writing
        for path in writing.iterdir():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        os.replace(writing, output)
        sync_directory(output.parent)
    except OSError as error:
        remedy = remedy_for(error) or "choose another --output"
        raise CheckpointError(f"cannot write {output}: {error.strerror}; {remedy}") from None
    finally:
        if writing is not None:
            shutil.rmtree(writing, ignore_errors=True)


def make_writing_directory(path: Path) -> Path:
    """A new, empty directory beside `path`, to write what is to appear there by a rename.

    Its name is new each time: another process, cut off but alive, may still be writing the same. What killed ones
    have left behind is removed once nothing has been written to it for a while.

    Raises:
        OSError: it cannot be made.
    """
    delete_leftovers(path.parent, _ABANDONED_SECONDS)  # first, as they may fill the disk
    writing = path.with_name(f"{_WRITING}{path.name}-{uuid.uuid4().hex[:8]}")
    writing.mkdir(parents=True)
    return writing


def delete_leftovers(parent: Path, seconds: float = 0.0) -> None:
    """Delete what was being written in a directory and has not been for so many seconds."""
    for leftover in parent.glob(f"{_WRITING}*"):
        with suppress(FileNotFoundError):  # another process removes it, too
            last_written = max(path.stat().st_mtime for path in (leftover, *leftover.rglob("*")))
            if time.time() - last_written >= seconds:
                shutil.rmtree(leftover, ignore_errors=True)
