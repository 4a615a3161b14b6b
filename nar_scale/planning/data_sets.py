"""Checks of a configuration against the data sets that it names: lengths, vocabulary and the mixture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nar_scale.config import Config, DataConfig, SourceConfig, samples_before
from nar_scale.data.loading.mixture import MixedOrder, Stage, weights_by_temperature
from nar_scale.data.loading.sample_order import SampleOrder
from nar_scale.data.shards.dataset_info import DatasetInfo
from nar_scale.data.tokenizers import SpecialTokens
from nar_scale.errors import ConfigError, DataError

# the part of a batch that samples must fill: where they vary in length, and where all are short
ENOUGH, ENOUGH_OF_SHORT_SAMPLES = 0.75, 0.95


def check_lengths(
    max_seq_len: int, sources: Mapping[str, SourceConfig], infos: Mapping[str, DatasetInfo | None]
) -> None:
    """Raise a DataError if samples are longer than sequences of the model."""
    for name, info in infos.items():
        if info is not None and info.seq_len > max_seq_len:
            raise DataError(
                f"{sources[name].directory} was prepared with {info.seq_len} tokens a sample, more than "
                f"model.max_seq_len {max_seq_len}; raise that, or prepare the data with a shorter --seq-len"
            )


def padding_warning(max_seq_len: int, directory: str, longest: int, mean: float) -> str | None:
    """Return a warning if much of what a model computes on a data set is padding; None if not.

    Args:
        max_seq_len: tokens to which samples are padded.
        directory: of the data set, a path or URL.
        longest: tokens in its longest sample.
        mean: tokens in a sample, on average.
    """
    if mean >= max_seq_len * (ENOUGH_OF_SHORT_SAMPLES if longest < max_seq_len else ENOUGH):
        return None
    remedy = "pack documents, by prepare.py without --one-document-per-sample"
    if longest < max_seq_len:
        remedy = f"set model.max_seq_len to {longest}, or make longer samples, by prepare.py --seq-len {max_seq_len}"
    return (
        f"samples of {directory} have at most {longest} tokens, {mean:.1f} on average, but model.max_seq_len is "
        f"{max_seq_len}: {1 - mean / max_seq_len:.0%} of what is computed is padding; {remedy}"
    )


def padding_warnings(
    max_seq_len: int, sources: Mapping[str, SourceConfig], infos: Mapping[str, DatasetInfo | None]
) -> list[str]:
    """Return the warnings about padding of all sources that say how long their samples are."""
    warnings = []
    for name, info in infos.items():
        train = None if info is None else info.splits.get("train")
        if info is not None and train is not None:
            mean = train.tokens / train.samples
            warnings.append(padding_warning(max_seq_len, sources[name].directory, info.seq_len, mean))
    return [warning for warning in warnings if warning is not None]


class Vocabulary(NamedTuple):
    """The token ids of a run.

    Attributes:
        size: number of token ids.
        tokenizer: `byte`, the path of a tokenizer file, which of a data set is relative to it, or None.
        end_token: ends a document; None if unknown.
        special_tokens: how special tokens that a text spells out are encoded, see `HuggingFaceTokenizer`.
    """

    size: int
    tokenizer: str | None
    end_token: int | None
    special_tokens: SpecialTokens


def vocabulary_of(
    data: DataConfig, sources: Mapping[str, SourceConfig], infos: Mapping[str, DatasetInfo | None]
) -> Vocabulary:
    """Return the vocabulary of the data; special tokens are text if all sources say so.

    Raises:
        DataError: the sources differ.
        ConfigError: the number of token ids is not known or less than that of the sources, or the tokenizer is not
            there.
    """
    known = {name: info for name, info in infos.items() if info is not None}
    kinds = {(info.vocabulary_size, info.tokenizer, info.end_token) for info in known.values()}
    if len(kinds) > 1:
        sizes = ", ".join(f"{name} {info.vocabulary_size} of {info.tokenizer}" for name, info in known.items())
        raise DataError(f"the sources have different vocabularies: {sizes}; prepare them with one tokenizer")
    size, name, end_token = kinds.pop() if kinds else (None, None, None)
    if data.vocabulary_size is not None and size is not None and data.vocabulary_size < size:
        directories = ", ".join(sources[key].directory for key in known)
        raise ConfigError(
            f"data.vocabulary_size is {data.vocabulary_size}, but {directories} has {size} token ids by its "
            f"dataset.json; leave it out, or give at least {size}"
        )
    size, name = data.vocabulary_size or size, data.tokenizer or name
    if data.tokenizer not in (None, "byte") and not Path(data.tokenizer).is_file():
        raise ConfigError(f"data.tokenizer {data.tokenizer} is no file; give a tokenizer.json, or byte")
    if size is None:
        directories = ", ".join(source.directory for source in sources.values())
        raise ConfigError(f"data.vocabulary_size is needed, as {directories} has no dataset.json")
    forms = {info.special_tokens for info in known.values()}
    return Vocabulary(size, name, end_token, "text" if forms == {"text"} else "ids")


def mixture_of(config: Config, counts: Mapping[str, np.ndarray]) -> MixedOrder:
    """The order of several sources, of which the samples in each shard are known, int64 [shards]."""
    data, seed = config.data, config.training.seed
    sizes = [int(of_source.sum()) for of_source in counts.values()]
    given = [(source.weight, source.epochs) for source in data.sources.values()]
    if given[0][0] is not None:
        weights = tuple(float(weight or 0) for weight, _ in given)
    elif given[0][1] is not None:
        weights = tuple(size * float(epochs or 0) for size, (_, epochs) in zip(sizes, given))
    else:
        weights = weights_by_temperature(sizes, data.temperature)
    stages = [
        Stage(samples_before(config.training, stage.from_step), tuple(stage.weights.get(n, 0.0) for n in counts))
        for stage in data.curriculum
    ]
    if not stages or stages[0].start > 0:
        stages.insert(0, Stage(0, weights))
    # sources of equal shards must not come in equal orders
    orders = [
        SampleOrder(of_source, seed + (number << 32), data.shuffle_window)
        for number, of_source in enumerate(counts.values())
    ]
    return MixedOrder(orders, stages, seed)
