"""Merging many small shards into few of the normal size, their samples unchanged and in the same order."""

import os
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path
from tarfile import BLOCKSIZE, RECORDSIZE
from typing import BinaryIO, NamedTuple

from nar_scale.data.formats.tar import DamagedTarError, tar_members
from nar_scale.data.parallel import ordered_map
from nar_scale.data.shards.index_file import load_shard_index
from nar_scale.data.shards.layout import SHARD_NAME
from nar_scale.data.shards.shard_index import index_path, make_shard_index
from nar_scale.errors import DataError
from nar_scale.progress import progress_bar


class WrittenShard(NamedTuple):
    """A shard that has been written and is not yet in its place.

    Attributes:
        path: where it is.
        digest: of its bytes, as in `ShardStamp`.
        samples: number of samples.
    """

    path: Path
    digest: str
    samples: int


def merge_small_shards(
    shards: Sequence[WrittenShard], samples_per_shard: int, directory: Path, workers: int, progress: bool
) -> list[WrittenShard]:
    """Merge neighbouring shards as long as they have no more than `samples_per_shard` samples together.

    Shards that were merged before are not merged again; one that was being written when its process was killed is.

    Args:
        shards: in order; one that has no neighbour to be merged with stays where it is.
        samples_per_shard: most samples in a shard.
        directory: where merged shards are written.
        workers: processes.
        progress: show a progress bar if stderr is a terminal.

    Returns:
        The shards that hold all samples now, in order.

    Raises:
        DataError: a shard is damaged.
        OSError: a shard is missing, or the directory cannot be written.
    """
    groups: list[list[WrittenShard]] = []
    together = 0
    for shard in shards:
        together += shard.samples
        if not groups or together > samples_per_shard:
            groups.append([])
            together = shard.samples
        groups[-1].append(shard)
    targets = [directory / SHARD_NAME.format(number) for number in range(len(groups))]
    tasks = [(target, group) for target, group in zip(targets, groups) if len(group) > 1]
    with progress_bar("merge", len(tasks), "shard", progress) as bar:
        merged = []
        for shard in ordered_map(_merge, tasks, max(min(workers, len(tasks)), 1)):
            merged.append(shard)
            bar.update(1)
    following = iter(merged)
    return [next(following) if len(group) > 1 else group[0] for group in groups]


def _merge(task: tuple[Path, list[WrittenShard]]) -> WrittenShard:
    target, shards = task
    path = index_path(str(target), None)
    index = load_shard_index(str(target), path) if target.exists() else None
    if index is None:
        _write_merged(target, shards)
        index = make_shard_index(str(target), path)
    return WrittenShard(target, index.stamp.digest, sum(shard.samples for shard in shards))


def _write_merged(target: Path, shards: list[WrittenShard]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        with open(unfinished, "xb") as file:
            for shard in shards:
                _append_members(shard.path, file)
            file.write(bytes(2 * BLOCKSIZE))
            file.write(bytes(-file.tell() % RECORDSIZE))
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, target)
    finally:
        unfinished.unlink(missing_ok=True)


def _append_members(shard: Path, merged: BinaryIO) -> None:
    """Append the content of a tar without the empty blocks at its end."""
    start = merged.tell()
    with open(shard, "rb") as file:
        end = 0
        try:
            for member in tar_members(file, os.fstat(file.fileno()).st_size):
                end = member.end
        except DamagedTarError as error:
            raise DataError(
                f"shard {shard} is damaged ({error}); delete its folder and prepare its work item again"
            ) from None
        file.seek(0)
        shutil.copyfileobj(file, merged)
    merged.seek(start + end)
    merged.truncate()
