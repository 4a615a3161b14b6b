"""Building the index of one shard, or checking the one there is."""

import os
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path

from nar_scale.data.shards.index_file import ShardIndex, copy_index_file, load_shard_index, write_shard_index
from nar_scale.data.shards.shard_scan import ShardScan, scan_shard, stamp_shard
from nar_scale.data.storage.remote import read_small
from nar_scale.data.storage.shard_cache import ShardCache
from nar_scale.data.storage.urls import is_remote
from nar_scale.errors import DataError
from nar_scale.text import printable

INDEX_SUFFIX = ".index"
MAX_INDEX_BYTES = 1 << 30


def index_path(shard: str, index_directory: Path | None) -> Path:
    """Return where the index of a shard is kept: beside it, or in a directory under a name unique to its path."""
    name = Path(shard).name + INDEX_SUFFIX
    if index_directory is None:
        return Path(shard).with_name(name)
    location = shard if is_remote(shard) else str(Path(shard).resolve())
    return index_directory / f"{blake2b(os.fsencode(location), digest_size=8).hexdigest()}-{name}"


def copy_shard_index(shard: str, path: Path) -> ShardIndex | None:
    """Copy the index that lies beside a local shard to `path`; return None if there is none to copy.

    Raises:
        DataError: the index beside the shard cannot be read, or the copy cannot be written.
    """
    beside = None if is_remote(shard) else index_path(shard, None)
    if beside is None or beside == path or load_shard_index(shard, beside) is None:
        return None
    return copy_index_file(beside.read_bytes(), shard, path)


def is_unchanged(index: ShardIndex) -> bool:
    """Return whether a shard still has the size and mtime that were indexed, without reading it.

    A remote shard counts as unchanged here: it is compared when it is fetched.

    Raises:
        DataError: the shard cannot be read.
    """
    if is_remote(index.shard):
        return True
    try:
        status = os.stat(index.shard)
    except OSError as error:
        raise DataError(f"cannot read shard {index.shard}: {error.strerror}; restore it or correct its path") from error
    return (status.st_size, status.st_mtime_ns) == (index.stamp.size, index.stamp.mtime_ns)


def make_shard_index(shard: str, path: Path, cache: ShardCache | None = None, allow_damage: bool = False) -> ShardIndex:
    """Read a whole shard, and build its index or check the one there is.

    A new index is written whole or not at all, so several processes may do this at once. A shard whose mtime alone
    differs from its index is accepted, and the new mtime written so that the next comparison is quick. The index of a
    remote shard is fetched from beside it if there is one.

    Args:
        shard: path or URL.
        path: the index file.
        cache: where remote shards are kept.
        allow_damage: index the samples before the damage instead of raising.

    Raises:
        DataError: the shard changed since it was indexed or is damaged, or the index cannot be written.
    """
    if is_remote(shard):
        return _index_remote(shard, path, cache, allow_damage)
    known = load_shard_index(shard, path)
    stamp = stamp_shard(Path(shard))
    if known is None or (known.damage is not None and stamp.digest != known.stamp.digest):
        return write_shard_index(shard, path, stamp, _scan(shard, Path(shard), allow_damage))
    if stamp.size != known.stamp.size:
        raise _changed(known, f"{known.stamp.size} bytes then, {stamp.size} now")
    if stamp.digest != known.stamp.digest:
        raise _changed(known, "same size, other content")
    try:
        if not known.has_checksums:
            return write_shard_index(shard, path, stamp, _scan(shard, Path(shard), allow_damage))
        table = known.map_table()
        return write_shard_index(
            shard, path, stamp, ShardScan(table["key"], known.fields, table["spans"], known.damage)
        )
    except DataError:
        return replace(known, stamp=stamp)  # the directory of the index is read-only: it is still right, only older


def damaged_shard(shard: str, damage: str) -> DataError:
    """Return the error for a shard that is damaged.

    Args:
        shard: path or URL.
        damage: see `ShardIndex.damage`.
    """
    return DataError(f"shard {printable(shard)} {damage}; copy or write it again")


def _scan(shard: str, file: Path, allow_damage: bool) -> ShardScan:
    scan = scan_shard(file)
    if scan.damage is not None and not allow_damage:
        raise damaged_shard(shard, scan.damage)
    return scan


def _index_remote(shard: str, path: Path, cache: ShardCache | None, allow_damage: bool) -> ShardIndex:
    if cache is None:
        raise DataError(
            f"shard {shard} is remote; give --cache-directory or data.cache_directory, a directory on this node"
        )
    content = read_small(shard + INDEX_SUFFIX, cache.storage_options, MAX_INDEX_BYTES)
    index = None if content is None else copy_index_file(content, shard, path)
    if index is not None:
        return index
    copy = cache.open(shard)
    try:
        return write_shard_index(shard, path, stamp_shard(copy.path), _scan(shard, copy.path, allow_damage))
    finally:
        copy.close()


def _changed(index: ShardIndex, reason: str) -> DataError:
    return DataError(
        f"shard {index.shard} changed since its index was built ({reason}); "
        f"restore it, or delete {index.path} to rebuild the index"
    )
