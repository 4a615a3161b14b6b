"""Turning text files into a data set of WebDataset shards."""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from nar_scale.data.corpus import find_corpus
from nar_scale.data.documents import TokenSpool, spool_documents
from nar_scale.data.info import TOKENS_FIELD, DatasetInfo, SplitInfo
from nar_scale.data.parallel import available_cores, ordered_map, progress_bar
from nar_scale.data.publish import SHARD_NAME, SPLITS, publish, refuse_existing_shards, staging_directory
from nar_scale.data.shard_writer import write_shard
from nar_scale.data.tokenizer import Tokenizer, load_tokenizer
from nar_scale.errors import DataError, UserError


def prepare(
    inputs: Sequence[Path],
    output: Path,
    *,
    seq_len: int,
    tokenizer: str = "byte",
    validation: float = 0.01,
    include: str = "*",
    exclude: Sequence[str] = (),
    samples_per_shard: int = 8192,
    workers: int | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> DatasetInfo:
    """Pack text files into fixed-length samples and write them as shards.

    One file is one document. In sorted order the documents are encoded, each followed by an end token, joined, and
    cut every `seq_len` tokens; the last sample of a split may be shorter. Documents go to the validation split by
    the hash of their content, so equal documents never stand on both sides. The output is the same, byte for byte,
    whatever the number of workers, and appears only when all of it is written: `dataset.json` comes last.

    Args:
        inputs: files, and folders walked recursively; hidden, empty and binary files (a NUL byte) are skipped.
        output: directory for `train/`, `validation/` and `dataset.json`.
        seq_len: tokens in a sample, at least 2.
        tokenizer: "byte", or a Hugging Face `tokenizer.json` file.
        validation: expected fraction of the documents to hold out, in [0, 1); 0 writes no validation split.
        include: glob on the names of files in folders.
        exclude: globs on the parts of paths below a folder, such as "site-packages".
        samples_per_shard: samples in a tar file.
        workers: processes; by default as many as there are cores.
        overwrite: replace a data set that is already in `output`.
        progress: show progress bars if stderr is a terminal.

    Returns:
        The contents of `dataset.json`.

    Raises:
        UserError: an argument is out of range, or `output` holds a data set already.
        DataError: an input is missing or unreadable, a split would be empty, or the output cannot be written.
    """
    inputs, output = [Path(path) for path in inputs], Path(output)
    workers = available_cores() if workers is None else workers
    _check_arguments(seq_len, validation, samples_per_shard, workers)
    if not overwrite:
        refuse_existing_shards(output)
    encoder = load_tokenizer(tokenizer)
    corpus = find_corpus(inputs, include, exclude, output)
    if not corpus.files:
        raise DataError(f"no file to read in {_names(inputs)}; check the paths and the include and exclude patterns")

    with staging_directory(output) as staging:
        dtype = np.min_scalar_type(encoder.vocabulary_size - 1)
        spool = TokenSpool(staging, dtype)
        skipped = spool_documents(corpus.files, spool, tokenizer, encoder.end_token, validation, workers, progress)
        _check_splits(spool, inputs, validation)
        splits = _write_splits(spool, staging, seq_len, samples_per_shard, workers, progress)
        info = _describe(encoder, seq_len, splits, {"hidden": corpus.hidden, **skipped})
        publish(staging, output, info, encoder)
        return info


def _check_arguments(seq_len: int, validation: float, samples_per_shard: int, workers: int) -> None:
    if seq_len < 2:
        raise UserError(f"seq_len is {seq_len}; give at least 2")
    if not 0 <= validation < 1:
        raise UserError(f"validation is {validation}; give a fraction of the documents, 0 <= fraction < 1")
    if samples_per_shard < 1:
        raise UserError(f"samples_per_shard is {samples_per_shard}; give at least 1")
    if workers < 1:
        raise UserError(f"workers is {workers}; give at least 1")


def _check_splits(spool: TokenSpool, inputs: Sequence[Path], validation: float) -> None:
    documents = {split: spool.documents[split] for split in SPLITS}
    total = sum(documents.values())
    if total == 0:
        raise DataError(f"no text in {_names(inputs)}: every file is empty or binary; give files of text")
    if validation > 0 and documents["validation"] == 0:
        raise DataError(
            f"none of the {total} documents fell into the validation split at a fraction of {validation}; "
            "raise the fraction, give more documents, or pass --validation 0 and prepare validation files separately"
        )
    if documents["train"] == 0:
        raise DataError(f"all {total} documents fell into the validation split; lower --validation {validation}")


def _write_splits(
    spool: TokenSpool, staging: Path, seq_len: int, samples_per_shard: int, workers: int, progress: bool
) -> dict[str, SplitInfo]:
    splits = {}
    shards: list[tuple[Path, Path, int, int]] = []
    for split in SPLITS:
        samples = math.ceil(spool.tokens[split] / seq_len)
        if samples == 0:
            continue
        (staging / split).mkdir()
        starts = range(0, samples, samples_per_shard)
        for number, start in enumerate(starts):
            path = staging / split / SHARD_NAME.format(number)
            shards.append((path, spool.path(split), start, min(start + samples_per_shard, samples)))
        splits[split] = SplitInfo(spool.documents[split], samples, spool.tokens[split], spool.bytes[split], len(starts))
    write = partial(_write_spooled_shard, dtype=spool.dtype, seq_len=seq_len)
    with progress_bar("write", sum(split.samples for split in splits.values()), "sample", progress) as bar:
        for samples in ordered_map(write, shards, min(workers, len(shards))):
            bar.update(samples)
    return splits


def _write_spooled_shard(shard: tuple[Path, Path, int, int], dtype: np.dtype, seq_len: int) -> int:
    path, spool, first_sample, end_sample = shard
    count = (end_sample - first_sample) * seq_len
    tokens = np.fromfile(spool, dtype=dtype, count=count, offset=first_sample * seq_len * dtype.itemsize)
    write_shard(path, tokens, seq_len, first_sample)
    return end_sample - first_sample


def _describe(encoder: Tokenizer, seq_len: int, splits: dict[str, SplitInfo], skipped: dict[str, int]) -> DatasetInfo:
    return DatasetInfo(
        tokenizer=encoder.name,
        vocabulary_size=encoder.vocabulary_size,
        end_token=encoder.end_token,
        seq_len=seq_len,
        field=TOKENS_FIELD,
        splits=splits,
        skipped=skipped,
    )


def _names(paths: Sequence[Path]) -> str:
    return ", ".join(map(str, paths)) or "an empty list of inputs"
