"""The hidden directories in which a data set is made before it is published, and what killed processes leave there."""

import shutil
from contextlib import suppress
from pathlib import Path

from nar_scale.data.preparation.plan import Plan
from nar_scale.data.shards.publish_marker import DONE, STAGING


def staging_directory(output: Path, name: str) -> Path:
    """Return where the shards of a data set are made.

    Args:
        output: the directory of the data set.
        name: another one for other inputs or settings.
    """
    return output / f"{STAGING}{name}"


def plan_directory(plan: Plan, output: Path) -> Path:
    """Return where the shards of a plan are made."""
    return staging_directory(Path(output), plan.fingerprint)


def discard(staging: Path) -> None:
    """Remove a staging directory. It is renamed first, so that a run which continues never finds half of it.

    Raises:
        OSError: the directory does not exist, or cannot be renamed.
    """
    staging.rename(staging.with_name(staging.name + DONE))
    remove_done(staging.parent)


def discard_others(staging: Path) -> None:
    """Remove what runs with other settings have left: their records do not know that their shards are replaced."""
    for leftover in staging.parent.glob(f"{STAGING}*"):
        if leftover != staging and leftover.suffix != DONE:
            with suppress(FileNotFoundError):  # another process has removed it
                discard(leftover)


def remove_done(output: Path) -> None:
    """Remove the staging directories that were being removed when a process was killed."""
    for done in output.glob(f"{STAGING}*{DONE}"):
        shutil.rmtree(done, ignore_errors=True)
