"""The mark of a data set whose shards are on their way into place."""

from pathlib import Path

from nar_scale.errors import DataError

STAGING = ".prepare-"


DONE = ".done"  # at the end of the name of a directory that may be deleted


PUBLISHING = "publishing"  # in such a directory: its shards are on their way into place


def refuse_half_published(output: Path) -> None:
    """Protect from taking shards, of which some are old and some are new, for a data set.

    Raises:
        DataError: shards are on their way into place.
    """
    if any(mark.parent.suffix != DONE for mark in output.glob(f"{STAGING}*/{PUBLISHING}")):
        raise DataError(
            f"data set {output} is being put into place by prepare.py, or was when that was killed; run the same "
            "launcher/prepare.py command again"
        )
