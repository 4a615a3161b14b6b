"""The likelihood of the sources of a report under a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from nar_scale.checkpoint import LoadedModel
from nar_scale.data import ShardCache
from nar_scale.evaluation import Likelihood, Split, evaluate_dataset, evaluate_reencoded


@dataclass(frozen=True)
class DataOptions:
    """The data that models are evaluated on.

    Attributes:
        sources: the directory or URL of each data set, by name of the source.
        split: its part that is evaluated.
        limit: sequences of each source, at most; all if None.
        batch_size: sequences in a forward pass.
        index_directory: where shard indices are kept if the data is read-only, or None.
        cache: keeps copies of remote shards on this node, or None.
        progress: whether progress bars are shown, where the output is a terminal.
    """

    sources: Mapping[str, str]
    split: str = "validation"
    limit: int | None = None
    batch_size: int = 16
    index_directory: str | None = None
    cache: ShardCache | None = None
    progress: bool = True

    def open(self, source: str, split: str) -> Split:
        """Open a split of a source.

        Raises:
            DataError: the data set or the split does not exist, or its shards are not those of its `dataset.json`.
        """
        return Split.open(
            self.sources[source], split, (), self.index_directory, progress=self.progress, cache=self.cache
        )


def measure_likelihoods(model: LoadedModel, data: DataOptions) -> dict[str, Likelihood]:
    """The likelihood of each source, whose tokens must be those of the model.

    Raises:
        DataError: a source does not exist, or does not fit the model.
        UserError: a batch or limit without a sequence.
    """
    return {
        name: evaluate_dataset(
            model.wrapper,
            directory,
            model.info.vocabulary_size,
            data.split,
            data.batch_size,
            data.limit,
            data.index_directory,
            data.progress,
            model.config.data.class_field,
            model.config.data.document_field,
            data.cache,
        )
        for name, directory in data.sources.items()
    }


def measure_any_likelihoods(model: LoadedModel, data: DataOptions) -> tuple[dict[str, Likelihood], bool]:
    """The likelihood of each source, encoded anew if one of them has another tokenizer or longer sequences.

    Returns:
        the likelihoods by name of the source, and whether the text was encoded anew, with the model's tokenizer.

    Raises:
        DataError: a source does not exist, or does not fit the model.
        UserError: a batch or limit without a sequence.
    """
    tokenizer = model.tokenizer
    splits = {name: data.open(name, data.split) for name in data.sources}
    if tokenizer is None or all(_fits(model, split) for split in splits.values()):
        return measure_likelihoods(model, data), False
    return {
        name: evaluate_reencoded(model.wrapper, tokenizer, split, data.batch_size, data.limit, data.progress)
        for name, split in splits.items()
    }, True


def describe_likelihood(likelihood: Likelihood) -> dict[str, Any]:
    """A likelihood by name of its numbers, for JSON."""
    return {
        **asdict(likelihood),
        "perplexity": likelihood.perplexity,
        "bits_per_byte": likelihood.bits_per_byte,
    }


def _fits(model: LoadedModel, split: Split) -> bool:
    if model.tokenizer is None or split.info.tokenizer is None:
        return True
    same = split.tokenizer().fingerprint == model.tokenizer.fingerprint
    return same and split.info.seq_len <= model.wrapper.max_seq_len
