"""Building the indices of many shards before training, which then starts at once."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from nar_scale.data.shards.dataset_index import DatasetIndex
from nar_scale.data.shards.dataset_info import DatasetInfo
from nar_scale.data.shards.layout import shard_patterns
from nar_scale.data.shards.shard_files import COMPRESSED_SUFFIXES
from nar_scale.data.storage.shard_cache import ShardCache
from nar_scale.data.storage.urls import is_remote
from nar_scale.errors import DataError, UserError
from nar_scale.text import counted


class IndexedShards(NamedTuple):
    """The outcome of `index_shards`.

    Attributes:
        lines: one for each location whose shards were found, with counts.
        faults: one for each damaged shard, and for each location that has none.
    """

    lines: list[str]
    faults: list[str]


def index_shards(
    locations: Sequence[str],
    index_directory: str | Path | None = None,
    cache: ShardCache | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> IndexedShards:
    """Build the index of every shard that has none, as the start of training does.

    A run that was killed continues where it was when it is started again.

    Args:
        locations: paths or URLs of folders, whose shards `shard_patterns` finds, and names or patterns of shards; those
            of remote shards end with `.tar`.
        index_directory: where to keep the indices; see `DatasetIndex.open`.
        cache: where copies of remote shards are kept on this node.
        workers: processes; by default as many as there are cores.
        progress: show a progress bar if stderr is a terminal.

    Raises:
        UserError: `workers` is out of range.
    """
    if workers is not None and workers < 1:
        raise UserError(f"workers is {workers}; give at least 1")
    lines: list[str] = []
    faults: list[str] = []
    for location in locations:
        try:
            directory, patterns = _shards_of(location, cache)
            index = DatasetIndex.open(
                directory, patterns, (), index_directory, progress, cache, skip_faults=True, workers=workers
            )
        except DataError as error:
            faults.append(str(error))
            continue
        whole = f"{len(index.damages):,} damaged" if index.damages else "all indexed"
        lines.append(
            f"{location}: {counted(index.num_samples, 'sample')} in {counted(index.num_shards, 'shard')}, {whole}"
        )
        faults += [f"{damage}; copy or write it again" for damage in index.damages]
    return IndexedShards(lines, faults)


def _shards_of(location: str, cache: ShardCache | None) -> tuple[str, list[str]]:
    if not location:
        raise DataError("the name of a folder is empty; give a folder, or shards")
    if not is_remote(location):
        return (location, shard_patterns(location, None)) if os.path.isdir(location) else (".", [location])
    if location.lower().endswith((".tar", *COMPRESSED_SUFFIXES)):
        return location.rpartition("/")[0], [location]
    info = DatasetInfo.find(location, {} if cache is None else cache.storage_options)
    return location, shard_patterns(location, info)
