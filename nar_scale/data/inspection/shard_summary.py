"""Describing one set of shards: counts, fields, and one sample."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from nar_scale.data.formats.field_names import CLASS_FIELD, DOCUMENTS_FIELD, TOKENS_FIELD
from nar_scale.data.formats.npy import decode_npy
from nar_scale.data.inspection.field_contents import (
    ArrayStatistics,
    FieldSizes,
    SampleView,
    is_array,
    is_class,
    plural,
)
from nar_scale.data.shards.dataset_index import DatasetIndex
from nar_scale.data.shards.dataset_info import DatasetInfo
from nar_scale.data.shards.index_file import ShardIndex, load_shard_index
from nar_scale.data.shards.shard_index import index_path, make_shard_index
from nar_scale.data.storage.shard_cache import ShardCache
from nar_scale.data.tokenizers import Tokenizer
from nar_scale.errors import DataError

MAX_EXAMINED = 256  # samples
MAX_EXAMINED_BYTES = 256 << 20  # of all of them
MAX_MEMBER_BYTES = 64 << 20
SHOWN_DAMAGES = 8
# what decode_npy and json let through when a file is nonsense
CONTENT_ERRORS = (ValueError, OverflowError, TypeError, RecursionError, MemoryError)


class ShardSummary:
    """Describes a set of shards.

    Args:
        index: the shards.
        index_directory: where their indices are kept, if not only beside them.
        info: the `dataset.json` of their data set, if it has one.
        tokenizer: decodes the tokens; None to show numbers only.
        cache: where copies of remote shards are kept on this node.
    """

    def __init__(
        self,
        index: DatasetIndex,
        index_directory: Path | None,
        info: DatasetInfo | None,
        tokenizer: Tokenizer | None,
        cache: ShardCache | None,
    ):
        self._index = index
        self._shards = [_load_index(index.shard(number), index_directory, cache) for number in range(index.num_shards)]
        self._ends = np.cumsum(index.counts)
        self._table: tuple[int, np.ndarray] | None = None  # of the shard read last
        self._fields: dict[str, FieldSizes] = {}
        for shard in self._shards:
            spans = shard.map_table()["spans"]
            for column, name in enumerate(shard.fields):
                self._fields.setdefault(name, FieldSizes()).add(spans[:, column])
        self._view = SampleView(
            TOKENS_FIELD if info is None else info.field,
            (info and info.document_field) or DOCUMENTS_FIELD,
            tokenizer,
            may_be_images=CLASS_FIELD in self._fields if info is None else info.tokenizer is None,
        )

    def describe(self) -> Iterator[str]:
        """Yield lines about the shards and their fields."""
        index, size = self._index, sum(shard.stamp.size for shard in self._shards)
        yield f"{plural(index.num_shards, 'shard')}, {plural(index.num_samples, 'sample')}, {size:,} bytes"
        for damage in index.damages[:SHOWN_DAMAGES]:
            yield f"damaged: {damage}"
        if len(index.damages) > SHOWN_DAMAGES:
            yield f"damaged: {len(index.damages) - SHOWN_DAMAGES:,} more shards"
        examined = self._examined()
        yield f"fields (the contents of arrays and classes are those of {len(examined):,} samples, spread evenly)"
        for name, sizes in sorted(self._fields.items()):
            samples = "all samples" if sizes.samples == index.num_samples else plural(sizes.samples, "sample")
            twice = f", twice in {plural(sizes.duplicates, 'sample')}" if sizes.duplicates else ""
            least = f"{sizes.least:,} to " if sizes.least != sizes.most else ""
            yield f"  {name}: in {samples}{twice}, {least}{plural(sizes.most, 'byte')}"
            yield from (f"    {line}" for line in self._describe_content(name, examined))

    def describe_sample(self, sample: int) -> Iterator[str]:
        """Yield lines about one sample; `sample` may be beyond the last."""
        if sample >= self._index.num_samples:
            yield f"sample {sample}: there are only {self._index.num_samples}"
            return
        yield f"sample {sample}: {self._index.name(sample)}"
        for name in sorted(self._fields):
            try:
                content = self._read(sample, name)
                if content is None:
                    continue
                head, *lines = self._view.lines(name, content)
            except (DataError, *CONTENT_ERRORS) as error:
                head, lines = f"cannot be read: {_reason(error)}", []
            yield f"  {name}: {head}"
            yield from (f"    {line}" for line in lines)

    def _examined(self) -> list[int]:
        """Return the samples whose contents are examined: not too many, and not too many bytes."""
        array_bytes = sum(sizes.total for name, sizes in self._fields.items() if is_array(name))
        mean = max(array_bytes // self._index.num_samples, 1)
        number = min(self._index.num_samples, MAX_EXAMINED, max(MAX_EXAMINED_BYTES // mean, 1))
        return np.linspace(0, self._index.num_samples - 1, number).astype(np.int64).tolist()

    def _describe_content(self, name: str, examined: Sequence[int]) -> list[str]:
        if not is_array(name) and not is_class(name):
            return []
        arrays, labels = ArrayStatistics(), Counter[int]()
        for sample in examined:
            try:
                content = self._read(sample, name)
                if content is None:
                    continue
                if is_array(name):
                    arrays.add(decode_npy(content))
                else:
                    labels[int(content)] += 1
            except (DataError, *CONTENT_ERRORS) as error:
                arrays.faults.append(_reason(error))
        lines = list(arrays.describe())
        if labels:
            lines.insert(0, f"classes {min(labels)} to {max(labels)}, {len(labels):,} different")
        return lines

    def _read(self, sample: int, name: str) -> bytes | None:
        """Return a member, or None if the sample has none or two."""
        number = int(np.searchsorted(self._ends, sample, side="right"))
        shard = self._shards[number]
        if name not in shard.fields:
            return None
        if self._table is None or self._table[0] != number:
            self._table = number, shard.map_table()
        row = sample - int(self._ends[number] - self._index.counts[number])
        offset, size = self._table[1][row]["spans"][shard.fields.index(name), :2].tolist()
        if offset < 0:
            return None
        if size > MAX_MEMBER_BYTES:
            raise ValueError(f"its {size:,} bytes are too many to examine")
        return self._index.read(sample, name)


def _load_index(shard: str, index_directory: Path | None, cache: ShardCache | None) -> ShardIndex:
    path = index_path(shard, index_directory)
    return load_shard_index(shard, path) or make_shard_index(shard, path, cache, allow_damage=True)


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
