"""The data of a run, from its config: shards opened, sources mixed, the stream and the validation data."""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from nar_scale.config import Config, DataConfig, SourceConfig, batch_size_at
from nar_scale.data import (
    Batch,
    ConcatenatedIndex,
    DatasetIndex,
    DatasetInfo,
    MixedOrder,
    SampleFormat,
    SampleOrder,
    SequentialStream,
    ShardCache,
    TokenStream,
    cache_bytes,
    find_sequential_shards,
    load_tokenizer,
)
from nar_scale.data.formats.npy import decode_npy
from nar_scale.data.shards.layout import named_shards
from nar_scale.data.shards.shard_comparison import check_against_info
from nar_scale.data.storage.urls import is_remote
from nar_scale.data.tokenizers import SpecialTokens
from nar_scale.errors import DataError
from nar_scale.planning.data_sets import (
    Vocabulary,
    check_lengths,
    mixture_of,
    padding_warning,
    padding_warnings,
    vocabulary_of,
)
from nar_scale.text import counted
from nar_scale.training.agreement import check_shards_alike
from nar_scale.training.data.validation import ValidationData
from nar_scale.training.distributed import World, on_main

MIN_OPEN_SHARDS = 16
SAMPLES_LOOKED_AT = 64
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingData:
    """The shards of a run.

    Attributes:
        sample_format: what each sample must look like.
        fingerprint: of all shards to train on.
        summary: the data in a line.
        tokenizer: `byte`, the absolute path of a tokenizer file, or None.
        end_token: ends a document; None if unknown.
        special_tokens: how special tokens that a text spells out are encoded, see `HuggingFaceTokenizer`.
        sources: the shards to train on by name of the source, "" for a single one; empty for a sequential stream.
        validation: what to evaluate on, by name of the source.
        mixture: the order of several sources; None for one.
        urls: the shards of a sequential stream.
    """

    sample_format: SampleFormat
    fingerprint: str
    summary: str
    tokenizer: str | None
    end_token: int | None
    special_tokens: SpecialTokens
    sources: Mapping[str, DatasetIndex]
    validation: Mapping[str, ValidationData]
    mixture: MixedOrder | None
    urls: tuple[str, ...] = ()

    def stream(self, config: Config, world: World, start_sample: int, start_step: int) -> Generator[Batch, None, None]:
        """This rank's endless micro-batches from a position on, which is that of a step."""
        while True:
            training = config.training
            size = batch_size_at(training, start_step)
            later = [stage.from_step for stage in training.batch_size_warmup if stage.from_step > start_step]
            batches = self._stream_of(size, config, world, start_sample)
            if not later:
                yield from batches
            steps = later[0] - start_step
            yield from islice(batches, steps * (size // (training.micro_batch_size * world.dp_size)))
            start_sample, start_step = start_sample + steps * size, later[0]

    def _stream_of(self, global_batch_size: int, config: Config, world: World, start_sample: int) -> Iterable[Batch]:
        """The stream as if all global batches were of one size."""
        settings: dict[str, Any] = {
            "sample_format": self.sample_format,
            "global_batch_size": global_batch_size,
            "micro_batch_size": config.training.micro_batch_size,
            "rank": world.dp_rank,
            "world_size": world.dp_size,
            "workers": config.data.loader_workers,
            "prefetch": config.data.prefetch,
            "start_sample": start_sample,
            "pin_memory": world.device.type == "cuda",
            "skip_faults": config.data.max_skipped_samples > 0,
        }
        if self.urls:
            return SequentialStream(self.urls, seed=config.training.seed, **settings)
        if config.training.batch_size_warmup:
            settings["first_batch"] = start_sample
        if self.mixture is not None:
            return TokenStream(ConcatenatedIndex(self.sources), self.mixture, **settings)
        (index,) = self.sources.values()
        order = SampleOrder(index.counts, config.training.seed, config.data.shuffle_window)
        return TokenStream(index, order, **settings)

    def consumed(self, position: int) -> dict[str, int]:
        """How many samples of each source come before a position; empty for a single source."""
        if self.mixture is None:
            return {}
        return dict(zip(self.sources, self.mixture.consumed(position).tolist()))


def open_training_data(config: Config, world: World) -> TrainingData:
    """Open the shards on all ranks; the main process lists them, and sends the others what it has found.

    Raises:
        DataError: shards are missing, damaged or without a field, sources do not fit together, or samples are to be
            written with a tokenizer that is damaged.
        ConfigError: the vocabulary is not known, or the weights of the sources make no sense.
        UserError: samples are to be written with a tokenizer that needs a package which is not installed.
    """
    data = config.data
    sources = data.sources or {"": SourceConfig(directory=str(data.directory))}
    infos = on_main(
        world,
        lambda: {name: DatasetInfo.find(source.directory, data.storage_options) for name, source in sources.items()},
    )
    check_lengths(config.model.max_seq_len, sources, infos)
    if world.is_main:
        for warning in padding_warnings(config.model.max_seq_len, sources, infos):
            _logger.warning("%s", warning)
    vocabulary = _vocabulary(config, world, sources, infos)
    tokenizer = vocabulary.tokenizer
    if tokenizer is not None and config.logging.sample_every and config.logging.image_shape is None:
        on_main(world, lambda: _try_tokenizer(tokenizer, vocabulary.end_token))
    sample_format = SampleFormat(
        sequence_length=config.model.max_seq_len,
        vocabulary_size=vocabulary.size,
        field=data.field,
        class_field=data.class_field,
        num_classes=config.objective.num_classes,
        document_field=data.document_field,
    )
    shards = _Shards(data, world, sample_format)
    validation = {}
    for name, source in sources.items():
        pattern = data.validation if source.validation is None else source.validation
        if pattern and config.logging.evaluate_every:
            index = shards.open(source.directory, pattern, infos[name])
            validation[name] = _validation_data(config, world, sample_format, index, infos[name])
    opened = partial(
        TrainingData,
        sample_format=sample_format,
        tokenizer=tokenizer,
        end_token=vocabulary.end_token,
        special_tokens=vocabulary.special_tokens,
        validation=validation,
    )
    if data.sequential:
        urls = tuple(on_main(world, lambda: find_sequential_shards(str(data.directory), data.train)))
        fingerprint = blake2b("\n".join(urls).encode(), digest_size=16).hexdigest()
        summary = f"{len(urls):,} shards read from start to end: the stream is inexact"
        return opened(fingerprint=fingerprint, summary=summary, sources={}, mixture=None, urls=urls)
    indexes = {
        name: shards.open(source.directory, source.train or data.train, infos[name]) for name, source in sources.items()
    }
    for name, index in indexes.items() if world.is_main else ():
        if infos[name] is None:
            _warn_of_padding(index, sample_format, sources[name].directory)
    if not data.sources:
        (index,) = indexes.values()
        return opened(fingerprint=index.fingerprint, summary=_describe(index), sources=indexes, mixture=None)
    mixture = mixture_of(config, {name: index.counts for name, index in indexes.items()})
    fingerprint = ConcatenatedIndex(indexes).fingerprint
    return opened(
        fingerprint=fingerprint, summary=_describe_mixture(indexes, mixture), sources=indexes, mixture=mixture
    )


def _warn_of_padding(index: DatasetIndex, sample_format: SampleFormat, directory: str) -> None:
    """Look at the first samples of shards that do not say how long their samples are."""
    first = np.arange(min(SAMPLES_LOOKED_AT, index.num_samples) if not is_remote(directory) else 0)
    try:
        lengths = [decode_npy(content).size for content in index.read_many(first, sample_format.field)]
    except (DataError, ValueError):
        return  # faults are named when the samples are trained on
    longest, mean = max(lengths, default=0), sum(lengths) / max(len(lengths), 1)
    warning = padding_warning(sample_format.sequence_length, directory, longest, mean) if longest else None
    if warning is not None:
        _logger.warning("%s (of the first %d samples)", warning, len(lengths))


class _Shards:
    """Opens shards on all ranks, and names those that are damaged."""

    def __init__(self, data: DataConfig, world: World, sample_format: SampleFormat):
        self._data, self._world, self._fields = data, world, sample_format.fields
        self._cache = _shard_cache(data)

    def open(self, directory: str, pattern: str, info: DatasetInfo | None) -> DatasetIndex:
        """The shards of a directory, which `dataset.json` describes if there is one."""
        index = on_main(self._world, lambda: self._open(directory, named_shards(directory, pattern, info), info))
        if not is_remote(directory):
            sizes = {str(Path(directory) / shard.name): shard.size for shard in index.shards()}
            check_shards_alike(self._world, sizes, directory)
        for damage in index.damages if self._world.is_main else ():
            _logger.warning("using the intact samples of a damaged shard: %s", damage)
        return index

    def _open(self, directory: str, pattern: str, info: DatasetInfo | None) -> DatasetIndex:
        data = self._data
        index = DatasetIndex.open(
            directory,
            pattern,
            self._fields,
            data.index_directory,
            cache=self._cache,
            skip_faults=data.max_skipped_samples > 0,
            memory_map=data.memory_map,
            # where two windows meet, and those of workers that are ahead
            max_open_shards=max(2 * data.shuffle_window, MIN_OPEN_SHARDS),
        )
        check_against_info(index, directory, pattern, info)
        return index


def _validation_data(
    config: Config, world: World, sample_format: SampleFormat, index: DatasetIndex, info: DatasetInfo | None
) -> ValidationData:
    split = info.splits.get("validation") if info is not None else None
    return ValidationData(
        index=index,
        sample_format=sample_format,
        batch_size=config.training.micro_batch_size,
        samples=config.logging.evaluation_samples,
        bytes_per_token=split.bytes_per_token if split else None,
        world=world,
        skip_faults=config.data.max_skipped_samples > 0,
    )


def _shard_cache(data: DataConfig) -> ShardCache | None:
    if data.cache_directory is None:
        return None
    return ShardCache(Path(data.cache_directory), cache_bytes(data.cache_gib), data.storage_options)


def _vocabulary(
    config: Config, world: World, sources: Mapping[str, SourceConfig], infos: Mapping[str, DatasetInfo | None]
) -> Vocabulary:
    """The same, with the tokenizer as `byte`, an absolute path or None."""
    data = config.data
    found = vocabulary_of(data, sources, infos)
    if found.tokenizer in (None, "byte"):
        return found
    if data.tokenizer:
        return found._replace(tokenizer=str(Path(data.tokenizer).resolve()))
    directory = next(source.directory for key, source in sources.items() if infos[key] is not None)
    # a remote one into the run directory: a cache may be gone when checkpoints are consolidated
    run_directory = config.training.run_directory
    fetched = on_main(
        world, lambda: DatasetInfo.fetch(directory, str(found.tokenizer), data.storage_options, run_directory)
    )
    return found._replace(tokenizer=fetched)


def _try_tokenizer(tokenizer: str, end_token: int | None) -> None:
    """Fail now, over a missing package or a damaged file, rather than when the first samples are written."""
    load_tokenizer(tokenizer, end_token=end_token)


def _describe(index: DatasetIndex) -> str:
    damaged = f" ({len(index.damages)} damaged)" if index.damages else ""
    return f"{counted(index.num_samples, 'sequence')} in {counted(index.num_shards, 'shard')}{damaged}"


def _describe_mixture(indexes: Mapping[str, DatasetIndex], mixture: MixedOrder) -> str:
    weights = mixture.stages[0].weights
    return "; ".join(
        f"{name} {_describe(index)}, {weight / sum(weights):.2%} at first"
        for (name, index), weight in zip(indexes.items(), weights)
    )
