"""How a data set appears in its place: whole, and only when all of it is there."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from nar_scale.data.info import INFO_FILE, DatasetInfo
from nar_scale.data.joining import SHARD_NAME, WrittenShard
from nar_scale.data.remote import is_remote
from nar_scale.data.shard_index import INDEX_SUFFIX
from nar_scale.data.tokenizer import TOKENIZER_FILE, Tokenizer
from nar_scale.errors import DataError, UserError

SHARD_FILES = ("shard-*.tar", f"shard-*.tar*{INDEX_SUFFIX}")
SPLITS = ("train", "validation")


def refuse_existing_shards(output: Path) -> None:
    """Protect a data set from being overwritten.

    Raises:
        UserError: `output` holds one, or parts of one.
    """
    if (output / INFO_FILE).exists():
        raise UserError(f"{output} already holds a data set; choose another output or pass --overwrite to replace it")
    if any(_shard_files(output)):
        raise UserError(
            f"{output} holds shards but no {INFO_FILE}; choose another output or pass --overwrite to replace them"
        )


def publish(
    output: Path, shards: Mapping[str, Sequence[WrittenShard]], info: DatasetInfo, tokenizer: Tokenizer | None
) -> None:
    """Move shards into place, numbered through, in exchange for what `output` holds.

    Doing it again after a kill completes it.

    Args:
        output: the directory of the data set.
        shards: by split, in order.
        info: becomes `dataset.json`.
        tokenizer: saved beside it.

    Raises:
        DataError: a shard is neither where it was written nor in place.
        OSError: `output` cannot be written.
    """
    # The old dataset.json goes first and the new one comes last: at no moment does it describe other shards.
    (output / INFO_FILE).unlink(missing_ok=True)
    if tokenizer is None or tokenizer.name != TOKENIZER_FILE:  # else it may be the very file that was asked for
        (output / TOKENIZER_FILE).unlink(missing_ok=True)
    for half_written in output.glob(f".{INFO_FILE}.*"):
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
            _move(written.path, places[written.path], written.size)
    if tokenizer is not None:
        tokenizer.save(output)
    info.save(output)


def named_shards(directory: str, pattern: str, info: DatasetInfo | None) -> str:
    """Return a pattern of shards; on a web server, which lists nothing, `SPLIT/*.tar` is those dataset.json counts."""
    split = pattern.removesuffix("/*.tar")
    if info is None or split not in info.splits or not directory.startswith(("http://", "https://")):
        return pattern
    last = info.splits[split].shards - 1
    return f"{split}/{SHARD_NAME.format(0)}" if last == 0 else f"{split}/shard-{{000000..{last:06d}}}.tar"


def shard_patterns(directory: str, info: DatasetInfo | None) -> list[str]:
    """Return patterns of the shards of a folder: one a split, or of all there are where there is no split."""
    if is_remote(directory):
        return [named_shards(directory, f"{split}/*.tar", info) for split in info.splits] if info else ["**/*.tar"]
    return [f"{split}/*.tar" for split in SPLITS if any((Path(directory) / split).glob("*.tar"))] or ["**/*.tar"]


def _move(written: Path, place: Path, size: int) -> None:
    # the index first: a shard that is gone from where it was written has taken its index along
    if _index_of(written).exists():
        os.replace(_index_of(written), _index_of(place))
    if written.exists():
        os.replace(written, place)
    if not place.exists() or place.stat().st_size != size:
        raise DataError(
            f"shard {place} was lost while it was moved into place; delete {written.parents[2]} and prepare the data "
            "set again"
        )


def _index_of(shard: Path) -> Path:
    return shard.with_name(shard.name + INDEX_SUFFIX)


def _shard_files(output: Path) -> list[Path]:
    return [file for split in SPLITS for pattern in SHARD_FILES for file in (output / split).glob(pattern)]
