"""Few shards of the normal size in place of many small ones, their samples as they are and in the same order."""

import os
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path
from tarfile import BLOCKSIZE, RECORDSIZE
from typing import BinaryIO, NamedTuple

from nar_scale.data.formats.tar import TarDamage, tar_members
from nar_scale.data.parallel import ordered_map, progress_bar
from nar_scale.data.shards.layout import SHARD_NAME
from nar_scale.data.shards.shard_index import index_path, load_shard_index, make_shard_index
from nar_scale.errors import DataError


class WrittenShard(NamedTuple):
    """A shard on its way into place: where it is, the digest of its bytes, and its samples."""

    path: Path
    digest: str
    samples: int


def join_small_shards(
    shards: Sequence[WrittenShard], samples_per_shard: int, directory: Path, workers: int, progress: bool
) -> list[WrittenShard]:
    """Join neighbours as long as they have no more than `samples_per_shard` samples together.

    What is joined already is not joined again, and what was being written when the process was killed is.

    Args:
        shards: in order; one that has no neighbour to join stays where it is.
        samples_per_shard: most samples in a shard.
        directory: where joined shards are written.
        workers: processes.
        progress: show a progress bar if stderr is a terminal.

    Raises:
        DataError: a shard is damaged.
        OSError: one went away, or the directory cannot be written.
    """
    groups: list[list[WrittenShard]] = []
    together = 0
    for shard in shards:
        together += shard.samples
        if not groups or together > samples_per_shard:
            groups.append([])
            together = shard.samples
        groups[-1].append(shard)
    places = [directory / SHARD_NAME.format(number) for number in range(len(groups))]
    tasks = [(place, group) for place, group in zip(places, groups) if len(group) > 1]
    with progress_bar("merge", len(tasks), "shard", progress) as bar:
        joined = []
        for shard in ordered_map(_join, tasks, max(min(workers, len(tasks)), 1)):
            joined.append(shard)
            bar.update(1)
    following = iter(joined)
    return [next(following) if len(group) > 1 else group[0] for group in groups]


def _join(task: tuple[Path, list[WrittenShard]]) -> WrittenShard:
    place, shards = task
    path = index_path(str(place), None)
    index = load_shard_index(str(place), path) if place.exists() else None
    if index is None:
        _write_joined(place, shards)
        index = make_shard_index(str(place), path)
    return WrittenShard(place, index.stamp.digest, sum(shard.samples for shard in shards))


def _write_joined(place: Path, shards: list[WrittenShard]) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    unfinished = place.with_name(f".{place.name}.{uuid.uuid4().hex}")
    try:
        with open(unfinished, "xb") as file:
            for shard in shards:
                _append_members(shard.path, file)
            file.write(bytes(2 * BLOCKSIZE))
            file.write(bytes(-file.tell() % RECORDSIZE))
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, place)
    finally:
        unfinished.unlink(missing_ok=True)


def _append_members(shard: Path, joined: BinaryIO) -> None:
    """Append the content of a tar without the empty blocks at its end."""
    start = joined.tell()
    with open(shard, "rb") as file:
        end = 0
        try:
            for member in tar_members(file, os.fstat(file.fileno()).st_size):
                end = member.end
        except TarDamage as error:
            raise DataError(f"shard {shard} is damaged ({error}); delete its folder and do its unit again") from None
        file.seek(0)
        shutil.copyfileobj(file, joined)
    joined.seek(start + end)
    joined.truncate()
