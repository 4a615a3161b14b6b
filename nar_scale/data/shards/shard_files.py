"""Finding the shards that patterns name, in a folder or in an object store."""

from collections.abc import Sequence
from glob import glob, has_magic
from pathlib import Path

from nar_scale.data.storage.remote import find_remote
from nar_scale.data.storage.shard_cache import ShardCache
from nar_scale.data.storage.urls import expand_braces, is_remote
from nar_scale.errors import DataError
from nar_scale.text import printable

PIPE = "pipe:"
COMPRESSED_SUFFIXES = (".gz", ".tgz", ".zst", ".bz2", ".xz", ".lz4", ".zip")


def find_shards(directory: str, patterns: Sequence[str], cache: ShardCache | None) -> list[str]:
    """Return the paths and URLs of the shards that match any of some patterns, sorted, each once.

    Args:
        directory: where relative patterns start; a path or URL.
        patterns: globs and names, with braces as in `shard-{000..099}.tar`, or URLs.
        cache: with the options of the object store, for remote shards.

    Raises:
        DataError: nothing matches a pattern, a remote shard has no cache, or a shard is compressed or a command.
    """
    shards: set[str] = set()
    for pattern in patterns:
        if pattern.startswith(PIPE) or directory.startswith(PIPE):
            raise DataError(
                f"{printable(pattern if pattern.startswith(PIPE) else directory)} is a command; set data.sequential: "
                "true to have a shell run it, with data.train naming it: the stream is then inexact"
            )
        location = pattern if is_remote(pattern) else f"{directory.rstrip('/')}/{pattern}"
        if is_remote(location):
            shards.update(_find_remote_shards(location, cache))
        else:
            shards.update(_find_local_shards(directory, pattern))
    for shard in shards:
        if shard.lower().endswith(COMPRESSED_SUFFIXES):
            raise DataError(
                f"shard {shard} is compressed, so its samples cannot be read one by one; unpack it, or set "
                "data.sequential: true for .tar.gz: the stream is then inexact"
            )
    # part by part, as a folder comes before what lies in it
    return sorted(shards, key=lambda shard: shard.split("/"))


def _find_remote_shards(location: str, cache: ShardCache | None) -> list[str]:
    if cache is None:
        raise DataError(
            f"{location} is remote; give --cache-directory or data.cache_directory, a directory on this node"
        )
    return find_remote(location, cache.storage_options)


def _find_local_shards(directory: str, pattern: str) -> list[str]:
    found = []
    for name in expand_braces(pattern):
        names = glob(name, root_dir=directory, recursive=True) if has_magic(name) else [name]
        matches = [str(path) for path in (Path(directory) / match for match in names) if path.is_file()]
        if not matches:
            raise DataError(f"no shard {name} in {directory}; prepare the data set or correct the path")
        found += matches
    return found
