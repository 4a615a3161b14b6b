"""Building the indices of shards ahead of training, which then starts at once."""

from collections.abc import Sequence
from pathlib import Path

from nar_scale.data.index import DatasetIndex
from nar_scale.data.info import DatasetInfo
from nar_scale.data.publish import named_shards
from nar_scale.data.remote import is_remote
from nar_scale.data.shard_cache import ShardCache


def index_shards(
    locations: Sequence[str],
    index_directory: str | Path | None = None,
    cache: ShardCache | None = None,
    progress: bool = True,
) -> str:
    """Build the index of every shard that has none, as the start of training does; doing it again goes on after a kill.

    Args:
        locations: paths or URLs of folders, looked through recursively, and names or patterns of shards, `.tar` at
            their end.
        index_directory: where to keep the indices; see `DatasetIndex.open`.
        cache: where copies of remote shards are kept on this node.
        progress: show a progress bar if stderr is a terminal.

    Returns:
        A line for each location.

    Raises:
        DataError: see `DatasetIndex.open`.
    """
    lines = []
    for location in locations:
        directory, patterns = _shards_of(location, cache)
        index = DatasetIndex.open(directory, patterns, (), index_directory, progress, cache)
        lines.append(f"{location}: {index.num_samples:,} samples in {index.num_shards:,} shards, all indexed")
    return "\n".join(lines)


def _shards_of(location: str, cache: ShardCache | None) -> tuple[str, list[str]]:
    if location.endswith(".tar"):
        return (location.rpartition("/")[0] if is_remote(location) else "."), [location]
    info = DatasetInfo.find(location, {} if cache is None else cache.storage_options)
    named = [] if info is None else [named_shards(location, f"{split}/*.tar", info) for split in info.splits]
    return location, named or ["**/*.tar"]
