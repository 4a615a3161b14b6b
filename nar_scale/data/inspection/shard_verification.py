"""Verifying one shard: its digest, its index and every sample."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np

from nar_scale.data.formats.field_names import CLASS_FIELD
from nar_scale.data.shards.dataset_info import DatasetInfo
from nar_scale.data.shards.index_file import ShardIndex, load_shard_index
from nar_scale.data.shards.sample_format import Sample, SampleFormat
from nar_scale.data.shards.shard_index import damaged_shard, index_path
from nar_scale.data.shards.shard_scan import DUPLICATE, ShardScan, ShardStamp, scan_shard, stamp_shard
from nar_scale.errors import DataError

TOKENS_COUNTED_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class ShardTask:
    """A shard to verify.

    Attributes:
        shard: its path.
        index_directory: where its index is kept, if not only beside it.
        info: the `dataset.json` of its data set.
    """

    shard: str
    index_directory: Path | None
    info: DatasetInfo


@dataclass(frozen=True)
class ShardResult:
    """What a shard holds.

    Attributes:
        size: bytes of the shard.
        indexed: whether it had an index, and so a digest to compare with.
        lengths: int64 `[samples]`, tokens in each.
        classes: the smallest and the largest; None where samples have no class.
        histogram: int64 `[vocabulary]`, how often each token occurs.
        digests: of the samples in order, 16 bytes each; see `SplitVerification.checksum`.
    """

    size: int
    indexed: bool
    lengths: np.ndarray
    classes: tuple[int, int] | None
    histogram: np.ndarray
    digests: bytes


def verify_shard(task: ShardTask) -> ShardResult:
    """Read a whole shard and check its digest, its index and all samples.

    Raises:
        DataError: the shard is damaged or not the one that was indexed, or a sample is not of the format of the data
            set; names shard and sample.
    """
    stamp = stamp_shard(Path(task.shard))
    indices = _indices(task)
    for index in indices:
        _check_digest(index, stamp)
    scan = scan_shard(Path(task.shard))
    if scan.damage is not None:
        raise damaged_shard(task.shard, scan.damage)
    for index in indices:
        _check_table(index, scan)
    sample_format = SampleFormat(
        sequence_length=task.info.seq_len,
        vocabulary_size=task.info.vocabulary_size,
        field=task.info.field,
        class_field=CLASS_FIELD if CLASS_FIELD in scan.fields or task.info.num_classes is not None else None,
        num_classes=task.info.num_classes,
        document_field=task.info.document_field,
    )
    counter = _TokenCounter(task.info.vocabulary_size)
    lengths, labels, digests = [], [], bytearray()
    for sample in _read_samples(task.shard, scan, sample_format):
        lengths.append(len(sample.tokens))
        labels.append(sample.label)
        digests += blake2b(np.ascontiguousarray(sample.tokens, dtype="<i8").tobytes(), digest_size=16).digest()
        counter.add(sample.tokens)
    known_labels = [label for label in labels if label is not None]
    return ShardResult(
        size=stamp.size,
        indexed=bool(indices),
        lengths=np.array(lengths, dtype=np.int64),
        classes=(min(known_labels), max(known_labels)) if known_labels else None,
        histogram=counter.finish(),
        digests=bytes(digests),
    )


def _indices(task: ShardTask) -> list[ShardIndex]:
    """Return the indices of a shard that training would use: the one beside it and the one that is kept elsewhere."""
    paths = {index_path(task.shard, None): None, index_path(task.shard, task.index_directory): None}
    indices = [load_shard_index(task.shard, path) for path in paths]
    return [index for index in indices if index is not None and index.damage is None]  # others are made again


def _check_digest(index: ShardIndex, stamp: ShardStamp) -> None:
    if (index.stamp.size, index.stamp.digest) != (stamp.size, stamp.digest):
        reason = "same size, other content"
        if index.stamp.size != stamp.size:
            reason = f"{index.stamp.size} bytes then, {stamp.size} now"
        raise DataError(
            f"shard {index.shard} changed since its index was built ({reason}); restore it, or delete {index.path} if "
            "the change was meant"
        )


def _check_table(index: ShardIndex, scan: ShardScan) -> None:
    try:
        table = index.map_table()
        same = (
            index.fields == scan.fields
            and np.array_equal(table["key"], scan.keys)
            and np.array_equal(table["spans"], scan.spans[..., : table["spans"].shape[-1]])
        )
    except OSError as error:
        raise DataError(f"cannot read index {index.path}: {error.strerror}; delete it to rebuild it") from error
    if not same:
        raise DataError(f"index {index.path} does not say where the samples lie; delete it to rebuild it")


def _read_samples(shard: str, scan: ShardScan, sample_format: SampleFormat) -> Iterator[Sample]:
    columns = {field: scan.fields.index(field) for field in sample_format.fields if field in scan.fields}
    with open(shard, "rb") as file:
        for key, spans in zip(scan.keys, scan.spans.tolist()):
            try:
                contents = {}
                for field in sample_format.fields:
                    if field not in columns or spans[columns[field]][0] < 0:
                        twice = field in columns and spans[columns[field]][0] == DUPLICATE
                        raise ValueError(
                            f"{'two fields' if twice else 'no field'} {field!r}; restore the shard, or prepare the "
                            "data set again"
                        )
                    offset, size, _ = spans[columns[field]]
                    contents[field] = os.pread(file.fileno(), size, offset)
                yield sample_format.parse(contents)
            except ValueError as error:
                name = bytes(key).decode("utf-8", errors="replace")
                raise DataError(f"shard {shard}, sample {name}: {error}") from None
            except OSError as error:
                raise DataError(f"cannot read shard {shard}: {error.strerror}; restore it") from error


class _TokenCounter:
    """Counts tokens many samples at a time, as a count touches the whole vocabulary."""

    def __init__(self, vocabulary_size: int):
        self._histogram = np.zeros(vocabulary_size, dtype=np.int64)
        self._waiting: list[np.ndarray] = []
        self._number = 0

    def add(self, tokens: np.ndarray) -> None:
        self._waiting.append(tokens)
        self._number += len(tokens)
        if self._number >= TOKENS_COUNTED_AT_ONCE:
            self._count()

    def finish(self) -> np.ndarray:
        self._count()
        return self._histogram

    def _count(self) -> None:
        if self._waiting:
            tokens = np.concatenate(self._waiting).astype(np.int64)
            self._histogram += np.bincount(tokens, minlength=len(self._histogram))
        self._waiting, self._number = [], 0
