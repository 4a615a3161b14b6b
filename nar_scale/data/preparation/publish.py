"""How a data set appears in its place: whole, and only when all of it is there."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from nar_scale.data.preparation.merge import WrittenShard
from nar_scale.data.preparation.staging import discard, discard_others
from nar_scale.data.shards.dataset_info import INFO_FILE, DatasetInfo
from nar_scale.data.shards.layout import SHARD_NAME, SPLITS
from nar_scale.data.shards.publish_marker import PUBLISHING
from nar_scale.data.shards.shard_index import INDEX_SUFFIX, is_unchanged, load_shard_index
from nar_scale.data.shards.shard_scan import stamp_shard
from nar_scale.data.storage.locks import locked_if_possible
from nar_scale.data.tokenizers import TOKENIZER_FILE, Tokenizer
from nar_scale.errors import DataError, UserError

SHARD_FILES = ("shard-*.tar", f"shard-*.tar*{INDEX_SUFFIX}")
MERGE_LOCK = ".merge.lock"


@contextmanager
def alone(output: Path) -> Iterator[None]:
    """Keep others from publishing in a directory; two at once would take the shards of each other away.

    Raises:
        UserError: somebody is at it.
    """
    with ExitStack() as stack:
        try:
            if output.is_dir():  # else there is nothing to publish, which is told
                stack.enter_context(locked_if_possible(output / MERGE_LOCK, wait=False))
        except BlockingIOError:
            raise UserError(
                f"another --merge is at work in {output}; wait for it to end, or if it was on a machine that is gone, "
                f"delete {output / MERGE_LOCK}"
            ) from None
        yield


def refuse_existing_shards(staging: Path, overwrite: bool) -> None:
    """Protect a data set from being overwritten, unless it is the one that is made in `staging`, on its way.

    Args:
        staging: a directory beside the splits.
        overwrite: it is to be replaced.

    Raises:
        UserError: there is one, or parts of one.
    """
    if overwrite or (staging / PUBLISHING).exists():
        return
    output = staging.parent
    if (output / INFO_FILE).exists():
        raise UserError(f"{output} already holds a data set; choose another output or pass --overwrite to replace it")
    if any(_shard_files(output)):
        raise UserError(
            f"{output} holds shards but no {INFO_FILE}; choose another output or pass --overwrite to replace them"
        )


def publish(
    staging: Path, shards: Mapping[str, Sequence[WrittenShard]], info: DatasetInfo, tokenizer: Tokenizer | None
) -> None:
    """Move shards into place, numbered through, in exchange for what is there, and remove what has been made beside it.

    Doing it again after a kill completes it.

    Args:
        staging: where the shards were made, in the directory of the data set.
        shards: by split, in order.
        info: becomes `dataset.json`.
        tokenizer: saved beside it.

    Raises:
        DataError: a shard is neither where it was written nor in place.
        OSError: the directory cannot be written.
    """
    (staging / PUBLISHING).touch()  # before the marks of others go: one always stands where shards are mixed
    discard_others(staging)
    _exchange(staging.parent, shards, info, tokenizer)
    discard(staging)


def _exchange(
    output: Path, shards: Mapping[str, Sequence[WrittenShard]], info: DatasetInfo, tokenizer: Tokenizer | None
) -> None:
    # The old dataset.json goes first and the new one comes last: at no moment does it describe other shards.
    (output / INFO_FILE).unlink(missing_ok=True)
    if tokenizer is None or tokenizer.name != TOKENIZER_FILE:  # else it may be the very file that was asked for
        (output / TOKENIZER_FILE).unlink(missing_ok=True)
    for name in (INFO_FILE, TOKENIZER_FILE):
        for half_written in output.glob(f".{name}.*"):
            half_written.unlink(missing_ok=True)
    places = {
        written.path: output / split / SHARD_NAME.format(number)
        for split, written_shards in shards.items()
        for number, written in enumerate(written_shards)
    }
    kept = {*places.values(), *map(_index_of, places.values())}
    for old_file in _shard_files(output):
        if old_file not in kept:
            old_file.unlink()
    for split, written_shards in shards.items():
        (output / split).mkdir(exist_ok=True)
        for written in written_shards:
            _move(written, places[written.path])
    if tokenizer is not None:
        tokenizer.save(output)
    info.save(output)


def _move(written: WrittenShard, place: Path) -> None:
    # the index first: a shard that is gone from where it was written has taken its index along
    if _index_of(written.path).exists():
        os.replace(_index_of(written.path), _index_of(place))
    if written.path.exists():
        os.replace(written.path, place)
    if not place.exists() or _digest(place) != written.digest:
        raise DataError(
            f"shard {place} was lost while it was moved into place; delete {written.path.parents[2]} and prepare the "
            "data set again"
        )


def _digest(shard: Path) -> str:
    """Return what the index says, and read the shard only if that may be of another: an old one in the same place."""
    index = load_shard_index(str(shard), _index_of(shard))
    return index.stamp.digest if index is not None and is_unchanged(index) else stamp_shard(shard).digest


def _index_of(shard: Path) -> Path:
    return shard.with_name(shard.name + INDEX_SUFFIX)


def _shard_files(output: Path) -> list[Path]:
    return [file for split in SPLITS for pattern in SHARD_FILES for file in (output / split).glob(pattern)]
