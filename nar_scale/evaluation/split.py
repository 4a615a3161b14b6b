"""One split of a prepared data set, opened for evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nar_scale.data import DatasetIndex, DatasetInfo, SampleFormat, ShardCache, Tokenizer, load_tokenizer
from nar_scale.data.shards.layout import named_shards
from nar_scale.data.shards.shard_comparison import check_against_info
from nar_scale.data.storage.urls import is_remote
from nar_scale.errors import DataError

RUN_SAMPLES = 1024


@dataclass(frozen=True)
class Split:
    """The samples of a split of a data set that `nar-scale prepare` wrote.

    Attributes:
        directory: of the data set, a path or URL.
        name: of the split.
        info: the data set's `dataset.json`.
        index: the samples.
        cache: keeps copies of remote shards on this node, or None.
    """

    directory: str
    name: str
    info: DatasetInfo
    index: DatasetIndex
    cache: ShardCache | None

    @classmethod
    def open(
        cls,
        directory: str | Path,
        name: str,
        more_fields: Sequence[str] = (),
        index_directory: str | Path | None = None,
        progress: bool = True,
        cache: ShardCache | None = None,
    ) -> Split:
        """Open the shards of a split.

        Args:
            directory: of the data set, a path or URL.
            name: of the split.
            more_fields: fields that every sample must have beside the one with its tokens.
            index_directory: where the shard index is kept if the directory of the shards is read-only.
            progress: whether a progress bar is shown, where the output is a terminal.
            cache: keeps copies of remote shards on this node.

        Raises:
            DataError: the data set or the split does not exist, or its shards are not those of its `dataset.json`.
        """
        directory = str(directory)
        info = find_info(directory, name, cache)
        shards = named_shards(directory, f"{name}/*.tar", info)
        fields = (info.field.lower(), *(field.lower() for field in more_fields))
        index = DatasetIndex.open(directory, shards, fields, index_directory, progress, cache)
        check_against_info(index, directory, shards, info)
        return cls(directory, name, info, index, cache)

    @property
    def bytes_per_token(self) -> float | None:
        """Bytes of text for each token, on average; None where there is no text."""
        return self.info.splits[self.name].bytes_per_token

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that the data set was made with.

        Raises:
            DataError: the data set is not of text, or its tokenizer is missing or damaged.
            UserError: the tokenizer needs an optional package.
        """
        if self.info.tokenizer is None:
            raise DataError(f"{self.directory} names no tokenizer, so its tokens cannot be read as text")
        directory = self.directory
        if is_remote(directory) and self.info.tokenizer != "byte":
            options = {} if self.cache is None else self.cache.storage_options
            cache = None if self.cache is None else str(self.cache.directory)
            directory = str(Path(DatasetInfo.fetch(directory, self.info.tokenizer, options, cache)).parent)
        return load_tokenizer(
            self.info.tokenizer,
            "." if is_remote(directory) else directory,
            self.info.end_token,
            self.info.special_tokens,
        )

    def read(self, sample: int) -> np.ndarray:
        """The tokens of a sample, integers `[n]`.

        Raises:
            DataError: it cannot be read.
        """
        sample_format = SampleFormat(self.info.seq_len, self.info.vocabulary_size, self.info.field)
        return sample_format.read(self.index, sample).tokens

    def runs(self, limit: int | None = None) -> Iterator[np.ndarray]:
        """The tokens of consecutive samples, joined; integers `[n]`, at most `RUN_SAMPLES` samples at a time.

        Args:
            limit: number of samples, at most, in runs that are spread evenly over the split; all if None.

        Raises:
            DataError: a sample cannot be read.
        """
        samples = self.index.num_samples
        total = -(-samples // RUN_SAMPLES)
        length = RUN_SAMPLES if limit is None else min(limit, RUN_SAMPLES)
        count = total if limit is None else min(total, max(1, limit // length))
        for number in range(count):
            start = number * total // count * RUN_SAMPLES
            ids = range(start, min(start + length, samples))
            yield np.concatenate([self.read(sample) for sample in ids])


def find_info(directory: str, split: str, cache: ShardCache | None = None) -> DatasetInfo:
    """The `dataset.json` of a data set that has a split.

    Raises:
        DataError: the data set or the split does not exist.
    """
    info = DatasetInfo.find(directory, {} if cache is None else cache.storage_options)
    if info is None:
        raise DataError(f"{directory} has no dataset.json; make the data set with nar-scale prepare")
    if split not in info.splits:
        raise DataError(f"{directory} has no split {split!r}, only {', '.join(info.splits)}")
    return info
