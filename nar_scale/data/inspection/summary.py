"""Describing a folder of WebDataset shards, whoever wrote them."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from nar_scale.data.inspection.field_contents import shorten
from nar_scale.data.inspection.shard_summary import ShardSummary
from nar_scale.data.shards.dataset_index import DatasetIndex
from nar_scale.data.shards.dataset_info import INFO_FILE, DatasetInfo, check_directory
from nar_scale.data.shards.layout import shard_patterns
from nar_scale.data.shards.shard_index import index_path
from nar_scale.data.storage.shard_cache import ShardCache
from nar_scale.data.storage.urls import is_remote
from nar_scale.data.tokenizers import ByteTokenizer, Tokenizer, load_tokenizer
from nar_scale.errors import DataError, UserError
from nar_scale.text import printable

MAX_LINE_LETTERS = 1000


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
    classes hold is found in at most 256 samples, spread evenly. Nothing is unpickled, and names and texts are shown
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
            index_folder = None if index_directory is None else Path(index_directory)
            lines += _inspect(location, info, patterns, sample, index_folder, progress, cache)
        except DataError as error:
            raise DataError(printable(str(error))) from error
    # the one point where text leaves: names and texts of others must not deceive a terminal, or flood it
    return "\n".join(shorten(printable(line), MAX_LINE_LETTERS) for line in lines)


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
            tokenizer = _load_tokenizer(location, info.tokenizer, info.end_token, cache)
        except UserError as error:
            lines.append(f"tokens are not decoded: {error}")
    indexes = {
        pattern: DatasetIndex.open(location, pattern, (), index_directory, progress, cache, skip_faults=True)
        for pattern in patterns
    }
    most = max(index.num_samples for index in indexes.values())
    if not 0 <= sample < most:
        raise UserError(f"sample is {sample}; give a number from 0 to {most - 1}")
    for pattern, index in indexes.items():
        lines.append(pattern)
        shards = ShardSummary(index, index_directory, info, tokenizer, cache)
        lines += [f"  {line}" for line in [*shards.describe(), *shards.describe_sample(sample)]]
    return lines


def _load_tokenizer(location: str, name: str, end_token: int | None, cache: ShardCache | None) -> Tokenizer:
    if name == ByteTokenizer.name or not is_remote(location) or cache is None:
        return load_tokenizer(name, location, end_token)
    path = DatasetInfo.fetch(location, name, cache.storage_options, str(cache.directory))
    return load_tokenizer(path, end_token=end_token)


def _is_indexed(directory: Path, patterns: Sequence[str]) -> bool:
    shards = (shard for pattern in patterns for shard in directory.glob(pattern))
    return all(index_path(str(shard), None).exists() for shard in shards)


def _read_info(location: str, cache: ShardCache | None) -> tuple[DatasetInfo | None, list[str]]:
    if not is_remote(location):
        check_directory(location)
    try:
        info = DatasetInfo.find(location, {} if cache is None else cache.storage_options)
        return info, [f"{location}: no {INFO_FILE}"] if info is None else _describe_info(location, info)
    except DataError as error:
        return None, [str(error)]


def _describe_info(location: str, info: DatasetInfo) -> list[str]:
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
    return lines


def _count(number: object) -> str:
    """Return a number with thousands separators; a damaged `dataset.json` may hold something else."""
    return f"{number:,}" if isinstance(number, int) else str(number)
