"""The hidden directories beside a data set in which it is made, and what a kill may leave of them."""

import shutil
from contextlib import suppress
from pathlib import Path

from nar_scale.data.shards.publish_marker import DONE, STAGING


def staging_directory(output: Path, name: str) -> Path:
    """Return where the shards of a data set are made; the name tells apart what is made of other inputs."""
    return output / f"{STAGING}{name}"


def discard(staging: Path) -> None:
    """Remove a directory, hidden by one rename first: a run that goes on must not find the half of it.

    Raises:
        OSError: it is not there, or cannot be renamed.
    """
    staging.rename(staging.with_name(staging.name + DONE))
    remove_done(staging.parent)


def discard_others(staging: Path) -> None:
    """Remove what runs with other settings have left: their records would not tell that their shards are replaced."""
    for leftover in staging.parent.glob(f"{STAGING}*"):
        if leftover != staging and leftover.suffix != DONE:
            with suppress(FileNotFoundError):  # whoever made it has removed it
                discard(leftover)


def remove_done(output: Path) -> None:
    """Remove what was being deleted when a process was killed."""
    for done_with in output.glob(f"{STAGING}*{DONE}"):
        shutil.rmtree(done_with, ignore_errors=True)
