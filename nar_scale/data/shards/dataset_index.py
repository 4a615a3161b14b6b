"""All samples of a set of shards, by number."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nar_scale.data.formats.field_names import TOKENS_FIELD
from nar_scale.data.parallel import available_cores, ordered_map
from nar_scale.data.shards.index_file import ShardIndex, load_shard_index
from nar_scale.data.shards.shard_files import find_shards
from nar_scale.data.shards.shard_index import (
    copy_shard_index,
    damaged_shard,
    index_path,
    is_unchanged,
    make_shard_index,
)
from nar_scale.data.shards.shard_reader import MAX_OPEN_SHARDS, ShardReader, ShardReference
from nar_scale.data.shards.shard_scan import ShardStamp
from nar_scale.data.storage.prefetch import ShardPrefetcher
from nar_scale.data.storage.shard_cache import ShardCache
from nar_scale.data.storage.urls import is_remote
from nar_scale.errors import DataError
from nar_scale.progress import kept_at_interrupt, progress_bar
from nar_scale.text import printable

LOADING_THREADS = 16  # reading many small files waits for the file system, not for the processor


class ShardIdentity(NamedTuple):
    """What identifies a shard of a data set.

    Attributes:
        name: its path relative to the directory of the data set, or its absolute path or URL.
        size: bytes.
        digest: blake2b of its bytes, as in `ShardStamp`.
        samples: number of samples.
    """

    name: str
    size: int
    digest: str
    samples: int


class DatasetIndex:
    """The samples of a set of shards, numbered through in sorted order of the shards' names.

    Open it with `DatasetIndex.open`. It takes about 60 bytes of memory for each shard and the length of its name, and
    the memory-mapped tables of the shards in use. It can be pickled for another process, on another node too: indices
    and copies of shards that are missing there are made there.

    Attributes:
        counts: int64 `[shards]`, samples in each.
        num_samples: samples in all.
        fingerprint: hex digest of the names, sizes, contents and counts of all shards; two data sets with the same
            fingerprint give the same sample for every sample id.
        damages: what is wrong with damaged shards, one line each; empty unless they were to be skipped.
    """

    def __init__(
        self,
        directory: str,
        indexes: Sequence[ShardIndex],
        index_directory: Path | None = None,
        cache: ShardCache | None = None,
        memory_map: bool = True,
        max_open_shards: int = MAX_OPEN_SHARDS,
    ):
        names = [os.fsencode(_relative(index.shard, directory)) for index in indexes]
        self._directory, self._index_directory = directory, index_directory
        self._names = np.array(names)
        self._sizes = np.array([index.stamp.size for index in indexes], dtype=np.int64)
        self._times = np.array([index.stamp.mtime_ns for index in indexes], dtype=np.int64)
        self._digests = np.frombuffer(b"".join(bytes.fromhex(index.stamp.digest) for index in indexes), dtype="V16")
        self.counts = np.array([index.count for index in indexes], dtype=np.int64)
        self.num_samples = int(self.counts.sum())
        self.damages = [f"shard {index.shard} {index.damage}" for index in indexes if index.damage is not None]
        self.fingerprint = self._compute_fingerprint()
        self._ends = np.cumsum(self.counts)
        self._starts = self._ends - self.counts
        self._reader = ShardReader(self._reference, cache, memory_map, max_open_shards)
        self._cache = cache
        self._prefetcher = ShardPrefetcher(self._fetch)

    @classmethod
    def open(
        cls,
        directory: str | Path,
        pattern: str | Sequence[str],
        fields: Sequence[str] = (TOKENS_FIELD,),
        index_directory: str | Path | None = None,
        progress: bool = True,
        cache: ShardCache | None = None,
        skip_faults: bool = False,
        memory_map: bool = True,
        max_open_shards: int = MAX_OPEN_SHARDS,
        workers: int | None = None,
    ) -> "DatasetIndex":
        """Open shards, building the index of those that have none, several at a time.

        Several processes may open the same shards at once; when there are many shards, let one process build the
        indices first. What is built stays, so a build that was killed continues where it was.

        Args:
            directory: where relative patterns start; a path or URL.
            pattern: glob such as "train/shard-*.tar", or a list of globs and file names, each of which must exist.
            fields: the WebDataset fields that every sample must have: what follows the first dot in a member's name, in
                letters of any case.
            index_directory: where to keep the index files; beside the shards if None, and for remote shards in the
                directory of the cache.
            progress: show a progress bar while building, if stderr is a terminal.
            cache: where copies of remote shards are kept on this node.
            skip_faults: take the intact samples of damaged shards, and samples without a field, which are errors when
                they are read.
            memory_map: see `ShardReader`.
            max_open_shards: see `ShardReader`.
            workers: processes that build; by default as many as there are cores.

        Raises:
            DataError: no shard matches, a listed one is missing, one is truncated or lacks a field, one changed
                since its index was built, none holds a sample, or an index cannot be written.
        """
        if is_remote(str(directory)) and index_directory is None and cache is not None:
            index_directory = cache.directory / "indices"
        index_folder = None if index_directory is None else Path(index_directory)
        patterns = [pattern] if isinstance(pattern, str) else pattern
        shards = find_shards(str(directory), patterns, cache)
        tasks = [(shard, index_path(shard, index_folder), cache, skip_faults) for shard in shards]
        indexes = _load_or_build(tasks, workers or available_cores(), progress)
        if not skip_faults:
            _check(indexes, fields)
        dataset = cls(str(directory), indexes, index_folder, cache, memory_map, max_open_shards)
        if dataset.num_samples == 0:
            _check(indexes, ())  # shards of which nothing is intact
            raise DataError(f"the {len(shards)} shards of {pattern} in {directory} hold no sample; write them again")
        return dataset

    @property
    def num_shards(self) -> int:
        """Number of shards."""
        return len(self._names)

    def shard(self, number: int) -> str:
        """Return the path or URL of a shard."""
        name = os.fsdecode(self._names[number])
        return name if is_remote(name) or Path(name).is_absolute() else f"{self._directory.rstrip('/')}/{name}"

    def shards(self) -> Iterator["ShardIdentity"]:
        """Yield what identifies each shard, in their order."""
        for name, size, digest, count in zip(self._names, self._sizes, self._digests, self.counts):
            yield ShardIdentity(os.fsdecode(name), int(size), digest.tobytes().hex(), int(count))

    def read(self, sample_id: int, field: str = TOKENS_FIELD) -> bytes:
        """Return a field of a sample, as it is stored.

        Args:
            sample_id: in `[0, num_samples)`.
            field: which field.

        Raises:
            DataError: it cannot be read; names shard, key and reason.
        """
        return self._reader.read(*self._locate(sample_id), field.lower())

    def read_many(self, sample_ids: np.ndarray, field: str = TOKENS_FIELD) -> list[bytes]:
        """Return a field of several samples, int64 `[n]`, at once; errors as in `read`."""
        field = field.lower()
        shards = np.searchsorted(self._ends, sample_ids, side="right")
        rows = sample_ids - self._starts[shards]
        contents = [b""] * len(sample_ids)
        for chosen in group_equal(shards):
            read = self._reader.read_many(int(shards[chosen[0]]), rows[chosen], field)
            for position, content in zip(chosen.tolist(), read):
                contents[position] = content
        return contents

    def prefetch(self, sample_ids: np.ndarray) -> None:
        """Start to fetch the remote shards of samples, int64 `[n]`, that will be read soon."""
        if self._cache is not None:
            shards = np.unique(np.searchsorted(self._ends, sample_ids, side="right")).tolist()
            self._prefetcher.request(shard for shard in shards if is_remote(self.shard(shard)))

    def _fetch(self, shard: int) -> None:
        reference = self._reference(shard)
        assert self._cache is not None
        self._cache.open(reference.location, reference.stamp.size, reference.stamp.digest).close()

    def name(self, sample_id: int) -> str:
        """Return "shard PATH, sample KEY" for messages about a sample."""
        return self._reader.name(*self._locate(sample_id))

    def _locate(self, sample_id: int) -> tuple[int, int]:
        """Return the shard and the row in it of a sample."""
        if not 0 <= sample_id < self.num_samples:
            raise IndexError(f"sample {sample_id} of {self.num_samples}")
        shard = int(np.searchsorted(self._ends, sample_id, side="right"))
        return shard, int(sample_id - self._starts[shard])

    def _reference(self, number: int) -> ShardReference:
        location = self.shard(number)
        digest = self._digests[number].tobytes().hex()
        stamp = ShardStamp(int(self._sizes[number]), int(self._times[number]), digest)
        return ShardReference(location, index_path(location, self._index_directory), stamp)

    def _compute_fingerprint(self) -> str:
        hasher = blake2b(digest_size=16)
        for shard in self.shards():
            hasher.update(os.fsencode("\0".join(map(str, shard)) + "\n"))
        return hasher.hexdigest()


def group_equal(numbers: np.ndarray) -> list[np.ndarray]:
    """Return for each different number, in ascending order, the int64 positions at which it stands."""
    order = np.argsort(numbers, kind="stable")
    ends = [*(np.flatnonzero(np.diff(numbers[order])) + 1).tolist(), len(order)]
    return [order[start:end] for start, end in zip([0, *ends], ends)]


_Task = tuple[str, Path, ShardCache | None, bool]  # shard, its index file, the cache, whether damage is allowed


def _load_or_build(tasks: Sequence[_Task], workers: int, progress: bool) -> list[ShardIndex]:
    with ThreadPoolExecutor(LOADING_THREADS) as pool:
        loaded = list(pool.map(_load_unchanged, tasks))
    built = _build([task for task, index in zip(tasks, loaded) if index is None], workers, progress)
    return [index if index is not None else next(built) for index in loaded]


def _load_unchanged(task: _Task) -> ShardIndex | None:
    """Return the index of a shard that has not changed since it was built; None if it is to be built or checked."""
    shard, path, _, allow_damage = task
    index = load_shard_index(shard, path) or copy_shard_index(shard, path)
    if index is None or not is_unchanged(index) or (index.damage is not None and not allow_damage):
        return None
    return index


def _build(tasks: Sequence[_Task], workers: int, progress: bool) -> Iterator[ShardIndex]:
    if not tasks:
        return
    kept = kept_at_interrupt("the indices that were finished are kept, and the same command goes on from there")
    with kept, progress_bar("index", len(tasks), "shard", progress) as bar:
        for index in ordered_map(_build_one, tasks, min(workers, len(tasks))):
            bar.set_postfix_str(f"{printable(Path(index.shard).name)}, {index.count:,} samples")
            bar.update(1)
            yield index


def _build_one(task: _Task) -> ShardIndex:
    return make_shard_index(*task)


def _check(indexes: Sequence[ShardIndex], fields: Sequence[str]) -> None:
    for index in indexes:
        if index.damage is not None:
            raise damaged_shard(index.shard, index.damage)
        if index.count:
            for field in fields:
                index.check_complete(field)


def _relative(shard: str, directory: str) -> str:
    if is_remote(shard):
        return shard.removeprefix(directory.rstrip("/") + "/")
    relative = os.path.relpath(shard, directory)
    return os.path.abspath(shard) if relative.startswith("..") else relative
