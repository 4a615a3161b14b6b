"""Verifying the integrity of a prepared data set: every shard, sample and count is read again and compared."""

import os
from hashlib import blake2b
from pathlib import Path

import numpy as np

from nar_scale.data.formats.field_names import CLASS_FIELD
from nar_scale.data.inspection.shard_verification import ShardResult, ShardTask, verify_shard
from nar_scale.data.inspection.text_counts import wrong_text_count
from nar_scale.data.inspection.verification import SplitVerification, Verification
from nar_scale.data.parallel import available_cores, ordered_map
from nar_scale.data.shards.dataset_info import INFO_FILE, DatasetInfo, SplitInfo
from nar_scale.data.shards.layout import SPLITS
from nar_scale.data.storage.urls import is_remote, redacted
from nar_scale.data.tokenizers import Tokenizer, load_tokenizer
from nar_scale.errors import DataError, UserError
from nar_scale.progress import kept_at_interrupt, progress_bar
from nar_scale.text import printable


def verify(
    directory: str | Path,
    index_directory: str | Path | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> Verification:
    """Read all of a prepared data set again and compare it with `dataset.json` and with the indices of its shards.

    Nothing is written. The numbers of documents and of bytes of text are compared with the tokens as far as they follow
    from them, see `wrong_text_count`.

    Args:
        directory: of the data set.
        index_directory: where indices of shards are kept, if not only beside them.
        workers: processes; by default as many as there are cores. The result does not depend on it.
        progress: show a progress bar if stderr is a terminal.

    Raises:
        UserError: `workers` is out of range, or the data set is remote.
        DataError: a shard is damaged or not the one that was indexed, a sample is not of the format, or a count differs
            from `dataset.json`; names the first such shard and sample.
    """
    if workers is not None and workers < 1:
        raise UserError(f"workers is {workers}; give at least 1")
    if is_remote(str(directory)):
        raise UserError(
            f"{redacted(str(directory))} is remote; only what lies on a local path is verified: copy it there"
        )
    try:
        return _verify(Path(directory), index_directory, workers or available_cores(), progress)
    except DataError as error:
        raise DataError(printable(str(error))) from error


def _verify(directory: Path, index_directory: str | Path | None, workers: int, progress: bool) -> Verification:
    info = DatasetInfo.load(directory)
    tokenizer = _load_tokenizer(directory, info)
    shards = {split: _find_shards(directory, split) for split in dict.fromkeys([*info.splits, *SPLITS])}
    for split, found in shards.items():
        _check_shard_count(directory, split, len(found), info.splits.get(split))
    tasks = [
        ShardTask(str(shard), None if index_directory is None else Path(index_directory), info)
        for split in info.splits
        for shard in shards[split]
    ]
    splits = {}
    size_of_all = sum(os.path.getsize(task.shard) for task in tasks)
    no_verdict = kept_at_interrupt(f"{directory} is not verified")
    with no_verdict, progress_bar("verify", size_of_all, "B", progress) as bar:
        results = ordered_map(verify_shard, tasks, min(workers, len(tasks)))
        for split, size in info.splits.items():
            counter = _SplitCounter(info)
            for shard in shards[split]:
                result = next(results)
                counter.add(shard, result)
                bar.set_postfix_str(printable(shard.name))
                bar.update(result.size)
            splits[split] = counter.finish()
            _check_counts(directory, split, splits[split], size)
            wrong = wrong_text_count(splits[split], size, tokenizer)
            if wrong is not None:
                path = directory / INFO_FILE
                raise DataError(f"{path} says {split} has {wrong}; restore it, or prepare the data set again")
    return Verification(directory, info, splits, tokenizer)


def _load_tokenizer(directory: Path, info: DatasetInfo) -> Tokenizer | None:
    if info.tokenizer is None:
        return None
    try:
        tokenizer = load_tokenizer(info.tokenizer, directory, info.end_token)
    except DataError:
        raise
    except UserError:  # the package is not installed: the report goes without the texts of tokens
        return None
    stated, found = (info.vocabulary_size, info.end_token), (tokenizer.vocabulary_size, tokenizer.end_token)
    if stated != found:
        raise DataError(
            f"{directory / INFO_FILE} says {stated[0]} tokens with end token {stated[1]}, its tokenizer "
            f"{info.tokenizer!r} has {found[0]} with end token {found[1]}; restore the tokenizer that the data set was "
            "made with"
        )
    return tokenizer


def _find_shards(directory: Path, split: str) -> list[Path]:
    return sorted(path for path in (directory / split).glob("*.tar") if path.is_file() and path.name[0] != ".")


def _check_shard_count(directory: Path, split: str, found: int, size: SplitInfo | None) -> None:
    stated = 0 if size is None else size.shards
    if found != stated:
        raise DataError(
            f"{directory / INFO_FILE} says {split} has {stated} shards, there are {found}; restore what is "
            "missing, move away what does not belong there, or prepare the data set again"
        )


def _check_counts(directory: Path, split: str, found: SplitVerification, size: SplitInfo) -> None:
    for what in ("samples", "tokens"):
        if getattr(size, what) != getattr(found, what):
            raise DataError(
                f"{directory / INFO_FILE} says {split} has {getattr(size, what)} {what}, its shards have "
                f"{getattr(found, what)}; restore the right shards, or prepare the data set again"
            )


class _SplitCounter:
    """Sums up the results of the shards of a split, which come in order."""

    def __init__(self, info: DatasetInfo):
        self._histogram = np.zeros(info.vocabulary_size, dtype=np.int64)
        self._hasher = blake2b(digest_size=16)
        self._lengths: list[tuple[int, int, int, int]] = []
        self._classes: list[tuple[int, int] | None] = []
        self._shards = self._without_index = 0

    def add(self, shard: Path, result: ShardResult) -> None:
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
