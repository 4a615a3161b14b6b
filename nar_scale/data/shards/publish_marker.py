"""The marks of a data set whose shards are being moved into place, and of which plan has put those there."""

from pathlib import Path

from nar_scale.errors import DataError

STAGING = ".prepare-"  # begins the name of a directory in which a data set is made
DONE = ".done"  # ends the name of such a directory that may be deleted
PREPARED = ".prepared"  # a file beside dataset.json, written before it: the fingerprint of the plan of the data set
PUBLISHING = "publishing"  # a file in such a directory: its shards are being moved into place


def refuse_half_published(output: Path) -> None:
    """Check that a directory does not hold shards of which some are old and some are new.

    Raises:
        DataError: shards are being moved into place there, or were when a process was killed.
    """
    if any(marker.parent.suffix != DONE for marker in output.glob(f"{STAGING}*/{PUBLISHING}")):
        raise DataError(
            f"data set {output} is being put into place by prepare.py, or was when that was killed; run the same "
            "nar-scale prepare command again"
        )
