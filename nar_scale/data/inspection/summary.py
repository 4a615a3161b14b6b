"""Telling what is in a folder of WebDataset shards, whoever wrote them."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np

from nar_scale.data.formats.field_names import CLASS_FIELD, DOCUMENTS_FIELD, TOKENS_FIELD
from nar_scale.data.formats.npy import decode_npy
from nar_scale.data.shards.dataset_index import DatasetIndex
from nar_scale.data.shards.dataset_info import INFO_FILE, DatasetInfo, check_directory
from nar_scale.data.shards.layout import shard_patterns
from nar_scale.data.shards.shard_index import ShardIndex, index_path, load_shard_index, make_shard_index
from nar_scale.data.storage.remote import is_remote
from nar_scale.data.storage.shard_cache import ShardCache
from nar_scale.data.text import printable
from nar_scale.data.tokenizers import ByteTokenizer, Tokenizer, load_tokenizer
from nar_scale.errors import DataError, UserError

MAX_LOOKED_AT = 256  # samples
MAX_LOOKED_AT_BYTES = 256 << 20  # of all of them
MAX_MEMBER_BYTES = 64 << 20
SHOWN_NUMBERS = 32
SHOWN_LETTERS = 500
SHOWN_JSON_LETTERS = 2000
SHOWN_DAMAGES = 8
MAX_GRID_SIDE = 32
MAX_TYPES = 4
MAX_LINE_LETTERS = 1000
PICKLES = ("pickle", "pkl", "pyd", "pth", "pt")
# what decode_npy and json let through when a file is nonsense
CONTENT_ERRORS = (ValueError, OverflowError, TypeError, RecursionError, MemoryError)


def inspect(
    directory: str | Path,
    pattern: str | Sequence[str] | None = None,
    sample: int = 0,
    index_directory: str | Path | None = None,
    progress: bool = True,
    cache: ShardCache | None = None,
) -> str:
    """Describe a folder of WebDataset shards in several lines: counts, fields, and one sample.

    The sizes of all members come from the indices of the shards, which are built where there are none. What arrays and
    classes hold is told from at most 256 samples, spread evenly. Nothing is unpickled, and names and texts are shown
    without control characters.

    Args:
        directory: the folder, a path or URL; it need not have a `dataset.json`.
        pattern: glob of shards such as "train/*.tar", or several, each described for itself; by default
            those of `dataset.json`, "train/*.tar" and "validation/*.tar", or else "**/*.tar".
        sample: number of the sample to show of each.
        index_directory: where to keep the indices of shards that have none; nothing is kept if not given,
            but for remote shards, in the directory of the cache.
        progress: show a progress bar while indices are built, if stderr is a terminal.
        cache: where copies of remote shards are kept on this node.

    Raises:
        UserError: there is no such sample.
        DataError: there is no shard, none holds a sample, one changed since its index was built, or an index cannot be
            written.
    """
    location = str(directory)
    with TemporaryDirectory() as temporary:
        try:
            info, lines = _read_info(location, cache)
            patterns = [pattern] if isinstance(pattern, str) else pattern or shard_patterns(location, info)
            if index_directory is None and is_remote(location) and cache is not None:
                index_directory = cache.directory / "indices"
            if index_directory is None and not _is_indexed(Path(location), patterns):
                index_directory = temporary
            place = None if index_directory is None else Path(index_directory)
            lines += _inspect(location, info, patterns, sample, place, progress, cache)
        except DataError as error:
            raise DataError(printable(str(error))) from error
    # the one place where anything leaves: names and texts of others must not fool a terminal, or flood it
    return "\n".join(_cut(printable(line), MAX_LINE_LETTERS) for line in lines)


def _inspect(
    location: str,
    info: DatasetInfo | None,
    patterns: Sequence[str],
    sample: int,
    index_directory: Path | None,
    progress: bool,
    cache: ShardCache | None,
) -> list[str]:
    lines = []
    tokenizer = None
    if info is not None and info.tokenizer is not None:
        try:
            tokenizer = _load_tokenizer(location, info.tokenizer, cache)
        except UserError as error:
            lines.append(f"no text of tokens: {error}")
    indexes = {
        pattern: DatasetIndex.open(location, pattern, (), index_directory, progress, cache, skip_faults=True)
        for pattern in patterns
    }
    most = max(index.num_samples for index in indexes.values())
    if not 0 <= sample < most:
        raise UserError(f"sample is {sample}; give a number from 0 to {most - 1}")
    for pattern, index in indexes.items():
        lines.append(pattern)
        shards = _ShardsInspection(index, index_directory, info, tokenizer, cache)
        lines += [f"  {line}" for line in [*shards.describe(), *shards.describe_sample(sample)]]
    return lines


def _load_tokenizer(location: str, name: str, cache: ShardCache | None) -> Tokenizer:
    if name == ByteTokenizer.name or not is_remote(location) or cache is None:
        return load_tokenizer(name, location)
    return load_tokenizer(DatasetInfo.fetch(location, name, cache.storage_options, str(cache.directory)))


def _is_indexed(directory: Path, patterns: Sequence[str]) -> bool:
    shards = (shard for pattern in patterns for shard in directory.glob(pattern))
    return all(index_path(str(shard), None).exists() for shard in shards)


def _read_info(location: str, cache: ShardCache | None) -> tuple[DatasetInfo | None, list[str]]:
    if not is_remote(location):
        check_directory(location)
    try:
        info = DatasetInfo.find(location, {} if cache is None else cache.storage_options)
        if info is None:
            return None, [f"{location}: no {INFO_FILE}"]
        parts = [f"tokenizer {info.tokenizer or 'none'}", f"vocabulary {_count(info.vocabulary_size)}"]
        if info.end_token is not None:
            parts.append(f"end token {info.end_token}")
        parts += [f"sequence length {_count(info.seq_len)}", f"tokens in {info.field}"]
        if info.document_field is not None:
            parts.append(f"documents in {info.document_field}")
        if info.num_classes is not None:
            parts.append(f"{_count(info.num_classes)} classes")
        lines = [f"{location}: {INFO_FILE} says {', '.join(parts)}"]
        for name, split in info.splits.items():
            totals = ("documents", "samples", "tokens", "bytes", "shards")
            lines.append(f"  {name}: " + ", ".join(f"{what} {_count(getattr(split, what))}" for what in totals))
        return info, lines
    except DataError as error:
        return None, [str(error)]


def _count(number: object) -> str:
    return f"{number:,}" if isinstance(number, int) else str(number)


@dataclass
class _FieldSizes:
    """Where a field occurs: samples that have it once, those that have it twice, bytes of those that have it once."""

    samples: int = 0
    twice: int = 0
    total: int = 0
    least: int | None = None
    most: int = 0

    def add(self, places: np.ndarray) -> None:
        offsets, sizes = places[:, 0], places[places[:, 0] >= 0, 1]
        self.twice += int((offsets < -1).sum())
        if len(sizes):
            self.samples += len(sizes)
            self.total += int(sizes.sum())
            self.least = int(sizes.min()) if self.least is None else min(self.least, int(sizes.min()))
            self.most = max(self.most, int(sizes.max()))


@dataclass
class _Arrays:
    """What the arrays of a field look like."""

    types: Counter[str] = field(default_factory=Counter)
    shapes: set[tuple[int, ...]] = field(default_factory=set)
    lengths: list[int] = field(default_factory=list)
    low: float | int | None = None
    high: float | int | None = None
    faults: list[str] = field(default_factory=list)

    def add(self, array: np.ndarray) -> None:
        self.types[_type_name(array)] += 1
        self.shapes.add(array.shape)
        if array.ndim == 1:
            self.lengths.append(len(array))
        if array.dtype.kind == "f":
            array = array[np.isfinite(array)]
        if array.dtype.kind in "biuf" and array.size:
            low, high = array.min().item(), array.max().item()
            self.low = low if self.low is None else min(self.low, low)
            self.high = high if self.high is None else max(self.high, high)

    def describe(self) -> Iterator[str]:
        if self.types:
            names = [name for name, _ in self.types.most_common()]
            types = " or ".join(names[:MAX_TYPES]) + (" or ..." if len(names) > MAX_TYPES else "")
            values = "" if self.low is None else f", values {_number(self.low)} to {_number(self.high)}"
            yield f"{types} {self._describe_shapes()}{values}"
        if len(self.lengths) == sum(self.types.values()) and max(self.lengths, default=1) > 1:
            yield f"lengths {min(self.lengths):,} to {max(self.lengths):,}, median {median(self.lengths):,.10g}"
        if self.faults:
            yield f"{len(self.faults):,} cannot be read, the first because {self.faults[0]}"

    def _describe_shapes(self) -> str:
        texts = []
        for dimensions in sorted({len(shape) for shape in self.shapes}):
            axes = zip(*[shape for shape in self.shapes if len(shape) == dimensions])
            ranges = [f"{min(axis)}" if min(axis) == max(axis) else f"{min(axis)}..{max(axis)}" for axis in axes]
            texts.append(f"[{', '.join(ranges)}]")
        return " or ".join(texts)


def _load_index(shard: str, index_directory: Path | None, cache: ShardCache | None) -> ShardIndex:
    path = index_path(shard, index_directory)
    return load_shard_index(shard, path) or make_shard_index(shard, path, cache, allow_damage=True)


class _ShardsInspection:
    """Describes one set of shards."""

    def __init__(
        self,
        index: DatasetIndex,
        index_directory: Path | None,
        info: DatasetInfo | None,
        tokenizer: Tokenizer | None,
        cache: ShardCache | None,
    ):
        self._index, self._tokenizer = index, tokenizer
        self._tokens_field = TOKENS_FIELD if info is None else info.field
        self._documents_field = (info and info.document_field) or DOCUMENTS_FIELD
        self._shards = [_load_index(index.shard(number), index_directory, cache) for number in range(index.num_shards)]
        self._ends = np.cumsum(index.counts)
        self._table: tuple[int, np.ndarray] | None = None  # of the shard looked at last
        self._fields: dict[str, _FieldSizes] = {}
        for shard in self._shards:
            places = shard.map_table()["places"]
            for column, name in enumerate(shard.fields):
                self._fields.setdefault(name, _FieldSizes()).add(places[:, column])
        self._may_be_images = CLASS_FIELD in self._fields if info is None else info.tokenizer is None

    def describe(self) -> Iterator[str]:
        index, size = self._index, sum(shard.stamp.size for shard in self._shards)
        yield f"{_plural(index.num_shards, 'shard')}, {_plural(index.num_samples, 'sample')}, {size:,} bytes"
        for damage in index.damages[:SHOWN_DAMAGES]:
            yield f"damaged: {damage}"
        if len(index.damages) > SHOWN_DAMAGES:
            yield f"damaged: {len(index.damages) - SHOWN_DAMAGES:,} more shards"
        looked_at = self._looked_at()
        yield f"fields (what is in arrays and classes is told from {len(looked_at):,} of the samples, spread evenly)"
        for name, sizes in sorted(self._fields.items()):
            share = "all samples" if sizes.samples == index.num_samples else _plural(sizes.samples, "sample")
            twice = f", twice in {_plural(sizes.twice, 'sample')}" if sizes.twice else ""
            least = f"{sizes.least:,} to " if sizes.least != sizes.most else ""
            yield f"  {name}: in {share}{twice}, {least}{_plural(sizes.most, 'byte')}"
            yield from (f"    {line}" for line in self._describe_content(name, looked_at))

    def describe_sample(self, sample: int) -> Iterator[str]:
        if sample >= self._index.num_samples:
            yield f"sample {sample}: there are only {self._index.num_samples}"
            return
        yield f"sample {sample}: {self._index.name(sample)}"
        for name in sorted(self._fields):
            try:
                content = self._read(sample, name)
                if content is None:
                    continue
                head, *lines = self._show(name, content)
            except (DataError, *CONTENT_ERRORS) as error:
                head, lines = f"cannot be read: {_reason(error)}", []
            yield f"  {name}: {head}"
            yield from (f"    {line}" for line in lines)

    def _looked_at(self) -> list[int]:
        array_bytes = sum(sizes.total for name, sizes in self._fields.items() if _is_array(name))
        mean = max(array_bytes // self._index.num_samples, 1)
        number = min(self._index.num_samples, MAX_LOOKED_AT, max(MAX_LOOKED_AT_BYTES // mean, 1))
        return np.linspace(0, self._index.num_samples - 1, number).astype(np.int64).tolist()

    def _describe_content(self, name: str, looked_at: Sequence[int]) -> list[str]:
        if not _is_array(name) and not _is_class(name):
            return []
        arrays, labels = _Arrays(), Counter[int]()
        for sample in looked_at:
            try:
                content = self._read(sample, name)
                if content is None:
                    continue
                if _is_array(name):
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
        offset, size = self._table[1][row]["places"][shard.fields.index(name)].tolist()
        if offset < 0:
            return None
        if size > MAX_MEMBER_BYTES:
            raise ValueError(f"its {size:,} bytes are too many to look at")
        return self._index.read(sample, name)

    def _show(self, name: str, content: bytes) -> list[str]:
        """Return a line, and more lines for below it."""
        kind = name.rpartition(".")[2].lower()
        if _is_array(name):
            return list(self._show_array(name, decode_npy(content)))
        size = _plural(len(content), "byte")
        if kind in PICKLES:
            return [f"{size}, not opened: what is pickled can run commands"]
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError:
            return [size]
        if "\0" in text:
            return [size]
        letters = SHOWN_LETTERS
        if kind == "json":
            text, letters = json.dumps(json.loads(text), indent=2, ensure_ascii=False), SHOWN_JSON_LETTERS
        lines = _cut(text, letters).rstrip("\n").split("\n")
        return lines if len(lines) == 1 else ["", *lines]

    def _show_array(self, name: str, array: np.ndarray) -> Iterator[str]:
        yield f"{_type_name(array)} [{', '.join(map(str, array.shape))}]"
        is_tokens = name == self._tokens_field and array.ndim == 1 and array.dtype.kind in "iu"
        if name == self._documents_field:
            yield _plural(len(np.unique(array)), "document")
        side = int(len(array) ** 0.5) if is_tokens and self._may_be_images else 0
        if 1 < side <= MAX_GRID_SIDE and side * side == len(array):
            width = max(len(str(token)) for token in array.tolist())
            for row in array.reshape(side, side).tolist():
                yield " ".join(f"{token:>{width}}" for token in row)
            return
        more = f" ... {array.size - SHOWN_NUMBERS:,} more" if array.size > SHOWN_NUMBERS else ""
        yield _cut(" ".join(map(_number, array.flat[:SHOWN_NUMBERS].tolist())), SHOWN_LETTERS) + more
        if is_tokens and self._tokenizer is not None:
            # a few tokens, such as bytes, may make one letter
            text = self._tokenizer.decode(array[: 4 * SHOWN_LETTERS].tolist())
            yield from _cut(text, SHOWN_LETTERS).split("\n")


def _type_name(array: np.ndarray) -> str:
    return str(array.dtype)[:80]


def _is_array(name: str) -> bool:
    return name.rpartition(".")[2].lower() == "npy"


def _is_class(name: str) -> bool:
    return name.rpartition(".")[2] == CLASS_FIELD


def _number(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _plural(number: int, name: str) -> str:
    return f"{number:,} {name}" if number == 1 else f"{number:,} {name}s"


def _cut(text: str, letters: int) -> str:
    return text if len(text) <= letters else f"{text[:letters]} ..."


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
