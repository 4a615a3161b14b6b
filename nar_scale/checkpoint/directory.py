"""Directories that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nar_scale.errors import CheckpointError
from nar_scale.files import sync_directory


@contextmanager
def written_whole(output: Path) -> Iterator[Path]:
    """A directory to write into, which is renamed to `output` at the end, or removed if an error comes before.

    Raises:
        CheckpointError: the output exists or cannot be written.
    """
    if output.exists():
        raise CheckpointError(f"{output} exists already; remove it or choose another --output")
    writing = output.with_name(f".writing-{output.name}")
    try:
        shutil.rmtree(writing, ignore_errors=True)
        writing.mkdir(parents=True)
        yield writing
        for path in writing.iterdir():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        os.replace(writing, output)
        sync_directory(output.parent)
    except OSError as error:
        raise CheckpointError(f"cannot write {output}: {error.strerror}") from None
    finally:
        shutil.rmtree(writing, ignore_errors=True)
