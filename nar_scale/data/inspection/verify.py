"""Reading a whole prepared data set again: is every shard, sample and count what it is said to be?"""

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import groupby
from pathlib import Path

import numpy as np

from nar_scale.data.formats.field_names import CLASS_FIELD
from nar_scale.data.parallel import available_cores, ordered_map, progress_bar
from nar_scale.data.shards.dataset_info import INFO_FILE, DatasetInfo, SplitInfo
from nar_scale.data.shards.layout import SPLITS
from nar_scale.data.shards.sample_format import Sample, SampleFormat
from nar_scale.data.shards.shard_index import ShardIndex, index_path, load_shard_index, raise_damage
from nar_scale.data.shards.shard_scan import TWICE, ShardScan, ShardStamp, scan_shard, stamp_shard
from nar_scale.data.storage.remote import is_remote, shown
from nar_scale.data.text import printable
from nar_scale.data.tokenizers import END_TOKEN_TEXT, Tokenizer, load_tokenizer
from nar_scale.errors import DataError, UserError

COUNTED_AT_ONCE = 1 << 20  # tokens
COMMON_TOKENS = 16
UNUSED_RANGES = 12


@dataclass(frozen=True, eq=False)
class SplitVerification:
    """What is in the shards of a split.

    Attributes:
        shards: number of tar files.
        samples: number of samples.
        tokens: number of tokens.
        shortest: tokens in the shortest sample.
        longest: tokens in the longest sample.
        classes: the smallest and the largest; None where samples have no class.
        histogram: int64 [vocabulary], how often each token occurs.
        checksum: hex blake2b of 16 bytes over the digests of all samples in order, where the digest of a sample is
            blake2b of 16 bytes over its tokens as little-endian int64. It says which tokens stand in which sample,
            and depends neither on the type they are stored in nor on how samples are divided into shards.
        without_index: shards that had no index, and so no digest to compare with.
    """

    shards: int
    samples: int
    tokens: int
    shortest: int
    longest: int
    classes: tuple[int, int] | None
    histogram: np.ndarray
    checksum: str
    without_index: int

    @property
    def mean_length(self) -> float:
        """Tokens in a sample."""
        return self.tokens / self.samples

    @property
    def different_tokens(self) -> int:
        """Number of tokens that occur."""
        return int((self.histogram > 0).sum())

    @property
    def entropy(self) -> float:
        """Entropy of the distribution of single tokens, in bits."""
        shares = self.histogram[self.histogram > 0] / self.tokens
        return float(-(shares * np.log2(shares)).sum()) + 0.0  # not -0.0


@dataclass(frozen=True, eq=False)
class Verification:
    """What `verify` has found; as a string, a report of several lines.

    Attributes:
        directory: of the data set.
        info: its `dataset.json`.
        splits: by name.
        tokenizer: of the data set; None if there is none, or the package it needs is not installed.
    """

    directory: Path
    info: DatasetInfo
    splits: dict[str, SplitVerification]
    tokenizer: Tokenizer | None

    def __str__(self) -> str:
        without_index = sum(split.without_index for split in self.splits.values())
        lines = [f"{self.directory}: every sample can be read, and all counts agree with {INFO_FILE}"]
        if without_index:
            shards = sum(split.shards for split in self.splits.values())
            lines.append(
                f"{without_index:,} of {shards:,} shards had no index: nothing says what their bytes should be"
            )
        else:
            lines.append("all shards have the digests in their indices")
        for name, split in self.splits.items():
            lines += [printable(name), *(f"  {line}" for line in self._describe(split))]
        return "\n".join(lines)

    def _describe(self, split: SplitVerification) -> Iterator[str]:
        vocabulary = self.info.vocabulary_size
        yield f"shards    {split.shards:,}"
        yield f"samples   {split.samples:,}"
        yield f"tokens    {split.tokens:,}"
        yield (
            f"lengths   {split.shortest:,} to {split.longest:,}, {split.mean_length:,.1f} on average, "
            f"{self.info.seq_len:,} allowed"
        )
        if split.classes is not None:
            yield f"classes   {split.classes[0]} to {split.classes[1]}"
        yield f"entropy   {split.entropy:.3f} bits a token, {math.log2(vocabulary):.3f} if all were equally common"
        yield f"checksum  {split.checksum}"
        yield f"used      {split.different_tokens:,} of {vocabulary:,} tokens"
        unused = np.flatnonzero(split.histogram == 0)
        if len(unused):
            yield f"unused    {len(unused):,} tokens: {_ranges(unused.tolist())}"
        yield "most common tokens"
        order = np.argsort(-split.histogram, kind="stable")[:COMMON_TOKENS]
        for token in order[split.histogram[order] > 0].tolist():
            text = "" if self.tokenizer is None else f"  {_text(self.tokenizer, token)}"
            yield f"  {token:>{len(str(vocabulary))}}  {split.histogram[token] / split.tokens:6.2%}{text}"


def verify(
    directory: str | Path,
    index_directory: str | Path | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> Verification:
    """Read all of a prepared data set again and compare it with `dataset.json` and with the indices of its shards.

    Nothing is written. The numbers of documents and of bytes of text cannot be told from shards and are not checked.

    Args:
        directory: of the data set.
        index_directory: where indices of shards are kept, if not only beside them.
        workers: processes; by default as many as there are cores. The result does not depend on it.
        progress: show a progress bar if stderr is a terminal.

    Raises:
        UserError: `workers` is out of range, or the data set is remote.
        DataError: a shard is damaged or not the one that was indexed, a sample is not what it should be, or a count
            differs; it names the first shard and sample where this is so.
    """
    if workers is not None and workers < 1:
        raise UserError(f"workers is {workers}; give at least 1")
    if is_remote(str(directory)):
        raise UserError(f"{shown(str(directory))} is remote; only what lies on a local path is verified: copy it there")
    try:
        return _verify(Path(directory), index_directory, workers or available_cores(), progress)
    except DataError as error:
        raise DataError(printable(str(error))) from error


def _verify(directory: Path, index_directory: str | Path | None, workers: int, progress: bool) -> Verification:
    info = DatasetInfo.load(directory)
    _check_info(directory, info)
    tokenizer = _load_tokenizer(directory, info)
    shards = {split: _find_shards(directory, split) for split in dict.fromkeys([*info.splits, *SPLITS])}
    for split, found in shards.items():
        _check_shard_count(directory, split, len(found), info.splits.get(split))
    tasks = [
        _Task(str(shard), None if index_directory is None else Path(index_directory), info)
        for split in info.splits
        for shard in shards[split]
    ]
    splits = {}
    with progress_bar("verify", sum(os.path.getsize(task.shard) for task in tasks), "B", progress) as bar:
        results = ordered_map(_verify_shard, tasks, min(workers, len(tasks)))
        for split, size in info.splits.items():
            collector = _Collector(info)
            for shard in shards[split]:
                result = next(results)
                collector.add(shard, result)
                bar.set_postfix_str(printable(shard.name))
                bar.update(result.size)
            splits[split] = collector.finish()
            _check_counts(directory, split, splits[split], size)
    return Verification(directory, info, splits, tokenizer)


def _check_info(directory: Path, info: DatasetInfo) -> None:
    numbers = {"vocabulary_size": info.vocabulary_size, "seq_len": info.seq_len}
    if info.num_classes is not None:
        numbers["num_classes"] = info.num_classes
    for split, sizes in info.splits.items():
        numbers.update({f"{split} {name}": getattr(sizes, name) for name in ("samples", "tokens", "shards")})
    wrong = [f"{name} is {number!r:.40}" for name, number in numbers.items() if not _is_positive(number)]
    if not info.splits:
        wrong.append("it has no splits")
    if wrong:
        raise DataError(f"{directory / INFO_FILE} is damaged ({wrong[0]}); restore it, or prepare the data set again")


def _is_positive(number: object) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and number > 0


def _load_tokenizer(directory: Path, info: DatasetInfo) -> Tokenizer | None:
    if info.tokenizer is None:
        return None
    try:
        tokenizer = load_tokenizer(info.tokenizer, directory)
    except DataError:
        raise
    except UserError:  # the package is not installed: the report goes without the texts of tokens
        return None
    said, found = (info.vocabulary_size, info.end_token), (tokenizer.vocabulary_size, tokenizer.end_token)
    if said != found:
        raise DataError(
            f"{directory / INFO_FILE} says {said[0]} tokens with end token {said[1]}, its tokenizer {info.tokenizer!r} "
            f"has {found[0]} with end token {found[1]}; restore the tokenizer the data set was made with"
        )
    return tokenizer


def _find_shards(directory: Path, split: str) -> list[Path]:
    return sorted(path for path in (directory / split).glob("*.tar") if path.is_file() and path.name[0] != ".")


def _check_shard_count(directory: Path, split: str, found: int, size: SplitInfo | None) -> None:
    said = 0 if size is None else size.shards
    if found != said:
        raise DataError(
            f"{directory / INFO_FILE} says {split} has {said} shards, there are {found}; restore what is "
            "missing, move away what does not belong there, or prepare the data set again"
        )


def _check_counts(directory: Path, split: str, found: SplitVerification, size: SplitInfo) -> None:
    for what in ("samples", "tokens"):
        if getattr(size, what) != getattr(found, what):
            raise DataError(
                f"{directory / INFO_FILE} says {split} has {getattr(size, what)} {what}, its shards have "
                f"{getattr(found, what)}; restore the right shards, or prepare the data set again"
            )


@dataclass(frozen=True)
class _Task:
    shard: str
    index_directory: Path | None
    info: DatasetInfo


@dataclass(frozen=True)
class _ShardResult:
    """What is in one shard; `digests` are those of its samples, 16 bytes each, joined."""

    size: int
    indexed: bool
    lengths: np.ndarray
    classes: tuple[int, int] | None
    histogram: np.ndarray
    digests: bytes


class _Collector:
    """Adds up the shards of a split, which come in order."""

    def __init__(self, info: DatasetInfo):
        self._histogram = np.zeros(info.vocabulary_size, dtype=np.int64)
        self._hasher = blake2b(digest_size=16)
        self._lengths: list[tuple[int, int, int, int]] = []
        self._classes: list[tuple[int, int] | None] = []
        self._shards = self._without_index = 0

    def add(self, shard: Path, result: _ShardResult) -> None:
        self._shards += 1
        lengths = result.lengths
        if len(lengths):
            self._lengths.append((len(lengths), int(lengths.sum()), int(lengths.min()), int(lengths.max())))
            self._classes.append(result.classes)
            if (result.classes is None) != (self._classes[0] is None):
                raise DataError(
                    f"shard {shard}: {'no' if result.classes is None else 'a'} field {CLASS_FIELD!r}, unlike those "
                    "before it; prepare the data set again"
                )
        self._histogram += result.histogram
        self._hasher.update(result.digests)
        self._without_index += not result.indexed

    def finish(self) -> SplitVerification:
        samples, tokens, shortest, longest = zip(*self._lengths) if self._lengths else ((0,),) * 4
        classes = [number for pair in self._classes if pair is not None for number in pair]
        return SplitVerification(
            shards=self._shards,
            samples=sum(samples),
            tokens=sum(tokens),
            shortest=min(shortest),
            longest=max(longest),
            classes=(min(classes), max(classes)) if classes else None,
            histogram=self._histogram,
            checksum=self._hasher.hexdigest(),
            without_index=self._without_index,
        )


def _verify_shard(task: _Task) -> _ShardResult:
    stamp = stamp_shard(Path(task.shard))
    indices = _indices(task)
    for index in indices:
        _check_digest(index, stamp)
    scan = scan_shard(Path(task.shard))
    if scan.damage is not None:
        raise_damage(task.shard, scan.damage)
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
    return _ShardResult(
        size=stamp.size,
        indexed=bool(indices),
        lengths=np.array(lengths, dtype=np.int64),
        classes=(min(known_labels), max(known_labels)) if known_labels else None,
        histogram=counter.finish(),
        digests=bytes(digests),
    )


def _indices(task: _Task) -> list[ShardIndex]:
    """Return the indices that are used for a shard, the one beside it and the one that is kept elsewhere."""
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
            and np.array_equal(table["places"], scan.places)
        )
    except OSError as error:
        raise DataError(f"cannot read index {index.path}: {error.strerror}; delete it to rebuild it") from error
    if not same:
        raise DataError(f"index {index.path} does not say where the samples lie; delete it to rebuild it")


def _read_samples(shard: str, scan: ShardScan, sample_format: SampleFormat) -> Iterator[Sample]:
    columns = {field: scan.fields.index(field) for field in sample_format.fields if field in scan.fields}
    with open(shard, "rb") as file:
        for key, places in zip(scan.keys, scan.places.tolist()):
            try:
                contents = {}
                for field in sample_format.fields:
                    if field not in columns or places[columns[field]][0] < 0:
                        twice = field in columns and places[columns[field]][0] == TWICE
                        raise ValueError(
                            f"{'two fields' if twice else 'no field'} {field!r}; restore the shard, or prepare the "
                            "data set again"
                        )
                    offset, size = places[columns[field]]
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
        if self._number >= COUNTED_AT_ONCE:
            self._count()

    def finish(self) -> np.ndarray:
        self._count()
        return self._histogram

    def _count(self) -> None:
        if self._waiting:
            tokens = np.concatenate(self._waiting).astype(np.int64)
            self._histogram += np.bincount(tokens, minlength=len(self._histogram))
        self._waiting, self._number = [], 0


def _ranges(numbers: Sequence[int]) -> str:
    """Return sorted numbers as "0 to 9, 13, 32 to 40", cut after a dozen."""
    ranges = []
    for _, group in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0]):
        run = [number for _, number in group]
        ranges.append(f"{run[0]} to {run[-1]}" if len(run) > 1 else f"{run[0]}")
    return ", ".join(ranges[:UNUSED_RANGES]) + (", ..." if len(ranges) > UNUSED_RANGES else "")


def _text(tokenizer: Tokenizer, token: int) -> str:
    text = END_TOKEN_TEXT.strip() if token == tokenizer.end_token else tokenizer.decode([token])
    return f"'{printable(text)}'"
