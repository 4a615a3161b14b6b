"""Publishing a data set: its shards are moved into place, and `dataset.json` is written last."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from nar_scale.data.preparation.small_shards import WrittenShard
from nar_scale.data.preparation.staging import discard, discard_others
from nar_scale.data.shards.dataset_info import INFO_FILE, DatasetInfo
from nar_scale.data.shards.index_file import load_shard_index
from nar_scale.data.shards.layout import SHARD_NAME, SPLITS
from nar_scale.data.shards.publish_marker import PREPARED, PUBLISHING, STAGING
from nar_scale.data.shards.shard_index import INDEX_SUFFIX, is_unchanged
from nar_scale.data.shards.shard_scan import stamp_shard
from nar_scale.data.storage.locks import exclusive_lock_if_supported
from nar_scale.data.tokenizers import TOKENIZER_FILE, Tokenizer
from nar_scale.errors import DataError, UserError
from nar_scale.files import write_atomically

SHARD_FILES = ("shard-*.tar", f"shard-*.tar*{INDEX_SUFFIX}")
MERGE_LOCK = ".merge.lock"


@contextmanager
def merge_lock(output: Path) -> Iterator[None]:
    """Hold the exclusive lock for publishing in a directory: two processes at once would move each other's shards.

    On a file system without locks it does nothing.

    Raises:
        UserError: another process holds it.
    """
    with ExitStack() as stack:
        try:
            if output.is_dir():  # else there is nothing to publish, which is an error later
                stack.enter_context(exclusive_lock_if_supported(output / MERGE_LOCK, wait=False))
        except BlockingIOError:
            raise UserError(
                f"another --merge is running in {output}; wait for it to end, or if it was on a machine that is gone, "
                f"delete {output / MERGE_LOCK}"
            ) from None
        yield


def refuse_existing_shards(staging: Path, overwrite: bool) -> None:
    """Refuse to overwrite a data set, unless it is the one of which some shards were moved out of `staging`.

    Args:
        staging: where a data set is made, in the directory of the data set.
        overwrite: allow it.

    Raises:
        UserError: there is a data set, or shards of one.
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


def find_finished(staging: Path, overwrite: bool) -> DatasetInfo | None:
    """Return the data set that was published from a staging directory; None if there is none, or another one.

    A process that is killed after it has published, or one that is started again, finds its own finished work by this.

    Args:
        staging: where the data set was made, in the directory of the data set.
        overwrite: a data set that is there is to be replaced.

    Raises:
        DataError: the `dataset.json` that is there is damaged.
    """
    output = staging.parent
    if overwrite or (staging / PUBLISHING).exists() or not (output / INFO_FILE).exists():
        return None
    try:
        plan = (output / PREPARED).read_text()
    except (OSError, ValueError):
        return None
    if plan != _plan_of(staging):
        return None
    info = DatasetInfo.load(output)
    shards = (output / split / SHARD_NAME.format(n) for split, size in info.splits.items() for n in range(size.shards))
    return info if all(shard.exists() for shard in shards) else None


def publish(
    staging: Path, shards: Mapping[str, Sequence[WrittenShard]], info: DatasetInfo, tokenizer: Tokenizer | None
) -> None:
    """Move shards into place, numbered through, instead of those that are there, and remove all staging directories.

    When the process was killed, doing it again completes it.

    Args:
        staging: where the shards were made, in the directory of the data set.
        shards: by split, in order.
        info: written as `dataset.json`.
        tokenizer: saved beside it; None if there is none.

    Raises:
        DataError: a shard is neither where it was written nor in its place.
        OSError: the directory cannot be written.
    """
    (
        staging / PUBLISHING
    ).touch()  # before the markers of others are removed: one is there whenever old and new shards are mixed
    discard_others(staging)
    _replace(staging, shards, info, tokenizer)
    discard(staging)


def _plan_of(staging: Path) -> str:
    return staging.name.removeprefix(STAGING)


def _replace(
    staging: Path, shards: Mapping[str, Sequence[WrittenShard]], info: DatasetInfo, tokenizer: Tokenizer | None
) -> None:
    output = staging.parent
    # The old dataset.json goes first and the new one comes last: at no moment does it describe other shards.
    (output / INFO_FILE).unlink(missing_ok=True)
    (output / PREPARED).unlink(missing_ok=True)
    if (
        tokenizer is None or tokenizer.name != TOKENIZER_FILE
    ):  # else it may be the very file that the tokenizer was read from
        (output / TOKENIZER_FILE).unlink(missing_ok=True)
    for name in (INFO_FILE, TOKENIZER_FILE, PREPARED):
        for half_written in output.glob(f".{name}.*"):
            half_written.unlink(missing_ok=True)
    targets = {
        written.path: output / split / SHARD_NAME.format(number)
        for split, written_shards in shards.items()
        for number, written in enumerate(written_shards)
    }
    kept = {*targets.values(), *map(_index_of, targets.values())}
    for old_file in _shard_files(output):
        if old_file not in kept:
            old_file.unlink()
    for split, written_shards in shards.items():
        (output / split).mkdir(exist_ok=True)
        for written in written_shards:
            _move(written, targets[written.path])
    if tokenizer is not None:
        tokenizer.save(output)
    write_atomically(output / PREPARED, _plan_of(staging).encode())
    info.save(output)


def _move(written: WrittenShard, target: Path) -> None:
    # the index first: where the shard has been moved, its index has been moved before
    if _index_of(written.path).exists():
        os.replace(_index_of(written.path), _index_of(target))
    if written.path.exists():
        os.replace(written.path, target)
    if not target.exists() or _digest(target) != written.digest:
        raise DataError(
            f"shard {target} was lost while it was moved into place; delete {written.path.parents[2]} and prepare the "
            "data set again"
        )


def _digest(shard: Path) -> str:
    """Return the digest of a shard from its index, or by reading it if the index may be that of an older shard."""
    index = load_shard_index(str(shard), _index_of(shard))
    return index.stamp.digest if index is not None and is_unchanged(index) else stamp_shard(shard).digest


def _index_of(shard: Path) -> Path:
    return shard.with_name(shard.name + INDEX_SUFFIX)


def _shard_files(output: Path) -> list[Path]:
    return [file for split in SPLITS for pattern in SHARD_FILES for file in (output / split).glob(pattern)]
