"""All samples of a set of shards, by number."""

import os
from collections.abc import Iterator, Sequence
from glob import glob, has_magic
from hashlib import blake2b
from pathlib import Path

import numpy as np

from nar_scale.data.info import TOKENS_FIELD
from nar_scale.data.parallel import available_cores, ordered_map, progress_bar
from nar_scale.data.shard_index import ShardIndex, index_path, is_unchanged, load_shard_index, make_shard_index
from nar_scale.data.shard_reader import ShardReader
from nar_scale.errors import DataError


class DatasetIndex:
    """The samples of a set of shards, numbered through in sorted order of the shards' names.

    Open it with `DatasetIndex.open`. Costs one small record a shard, and the tables of the shards in use.

    Attributes:
        shards: the tar files, sorted.
        field: the field that is read.
        counts: int64 [shards], samples in each.
        num_samples: samples in all.
        fingerprint: hex digest of the names, sizes, contents and counts of all shards; two data sets with the same
            fingerprint give the same sample for every sample id.
    """

    def __init__(self, directory: Path, indexes: Sequence[ShardIndex]):
        self.shards = [index.shard for index in indexes]
        self.field = indexes[0].field
        self.counts = np.array([index.count for index in indexes], dtype=np.int64)
        self.num_samples = int(self.counts.sum())
        self.fingerprint = _fingerprint(directory, indexes)
        self._ends = np.cumsum(self.counts)
        self._reader = ShardReader(indexes)

    @classmethod
    def open(
        cls,
        directory: str | Path,
        pattern: str | Sequence[str],
        field: str = TOKENS_FIELD,
        cache_directory: str | Path | None = None,
        progress: bool = True,
    ) -> "DatasetIndex":
        """Open shards, building the index of those that have none, several at a time.

        Several processes may open the same shards at once. When there are many, let one of them build first.

        Args:
            directory: where relative patterns start.
            pattern: glob such as "train/shard-*.tar", or a list of globs and file names, each of which must exist.
            field: the WebDataset field to read, what follows the first dot in the member's name.
            cache_directory: where to keep the index files; beside the shards if None.
            progress: show a progress bar while building, if stderr is a terminal.

        Raises:
            DataError: no shard matches, a listed one is missing, one is truncated or lacks the field, one changed
                since its index was built, none holds a sample, or an index cannot be written.
        """
        directory = Path(directory)
        cache = None if cache_directory is None else Path(cache_directory)
        shards = _find_shards(directory, [pattern] if isinstance(pattern, str) else pattern)
        tasks = [(shard, index_path(shard, field, cache), field) for shard in shards]
        indexes = [load_shard_index(*task) for task in tasks]
        unread = [row for row, index in enumerate(indexes) if index is None or not is_unchanged(index)]
        for row, index in zip(unread, _read_shards([tasks[row] for row in unread], progress)):
            indexes[row] = index
        dataset = cls(directory, [index for index in indexes if index is not None])
        if dataset.num_samples == 0:
            raise DataError(f"the {len(shards)} shards of {pattern} in {directory} hold no sample; write them again")
        return dataset

    def read(self, sample_ids: np.ndarray) -> list[np.ndarray]:
        """Return the arrays of some samples, read-only, as they are stored.

        Args:
            sample_ids: int64 [n], each in [0, num_samples).

        Raises:
            DataError: naming shard, key and reason, if one cannot be read.
        """
        return [self._reader.read(*self._place(sample_id)) for sample_id in sample_ids]

    def read_bytes(self, sample_ids: np.ndarray) -> list[bytes]:
        """Return the contents of some samples, whatever they are; arguments and errors as in `read`."""
        return [self._reader.read_bytes(*self._place(sample_id)) for sample_id in sample_ids]

    def name(self, sample_id: int) -> str:
        """Return "shard PATH, sample KEY" for messages about a sample."""
        return self._reader.name(*self._place(sample_id))

    def _place(self, sample_id: int) -> tuple[int, int]:
        if not 0 <= sample_id < self.num_samples:
            raise IndexError(f"sample {sample_id} of {self.num_samples}")
        shard = int(np.searchsorted(self._ends, sample_id, side="right"))
        return shard, int(sample_id - self._ends[shard] + self.counts[shard])


def _find_shards(directory: Path, patterns: Sequence[str]) -> list[Path]:
    shards: set[Path] = set()
    for pattern in patterns:
        for name in _expand_braces(pattern):
            names = glob(name, root_dir=directory, recursive=True) if has_magic(name) else [name]
            matches = [path for path in (directory / match for match in names) if path.is_file()]
            if not matches:
                raise DataError(f"no shard {name} in {directory}; prepare the data set or correct the path")
            shards.update(matches)
    return sorted(shards)


def _expand_braces(pattern: str) -> Sequence[str]:
    if "{" not in pattern:
        return [pattern]
    from braceexpand import braceexpand  # comes with webdataset, whose users write shard-{000000..000099}.tar

    return list(braceexpand(pattern))


def _read_shards(tasks: Sequence[tuple[Path, Path, str]], progress: bool) -> Iterator[ShardIndex]:
    if not tasks:
        return
    with progress_bar("index", sum(shard.stat().st_size for shard, _, _ in tasks), "B", progress) as bar:
        for index in ordered_map(_read_shard, tasks, min(available_cores(), len(tasks))):
            bar.update(index.stamp.size)
            yield index


def _read_shard(task: tuple[Path, Path, str]) -> ShardIndex:
    return make_shard_index(*task)


def _fingerprint(directory: Path, indexes: Sequence[ShardIndex]) -> str:
    hasher = blake2b(digest_size=16)
    for index in indexes:
        name = os.path.relpath(index.shard, directory)
        hasher.update(f"{name}\0{index.stamp.size}\0{index.stamp.digest}\0{index.count}\n".encode())
    return hasher.hexdigest()
