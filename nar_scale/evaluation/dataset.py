"""The likelihood of a prepared data set under a model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nar_scale.data import Batch, SampleFormat, ShardCache, Tokenizer, sequential_batches
from nar_scale.errors import DataError, UserError
from nar_scale.evaluation.likelihood import Likelihood, evaluate_likelihood
from nar_scale.evaluation.reencoding import ReencodedText
from nar_scale.evaluation.split import Split, find_info
from nar_scale.objectives import Objective
from nar_scale.progress import progress_bar, with_progress

if TYPE_CHECKING:
    from tqdm import tqdm


def evaluate_dataset(
    objective: Objective,
    directory: str | Path,
    vocabulary_size: int,
    split: str = "validation",
    batch_size: int = 16,
    limit: int | None = None,
    index_directory: str | Path | None = None,
    progress: bool = True,
    class_field: str | None = None,
    document_field: str | None = None,
    cache: ShardCache | None = None,
) -> Likelihood:
    """Evaluate a model on a split of a data set that `nar-scale prepare` wrote.

    Args:
        objective: the model.
        directory: of the data set, a path or URL.
        vocabulary_size: number of token ids in the data that the model was trained on.
        split: name of the split.
        batch_size: sequences in a forward pass.
        limit: number of sequences, which are spread evenly over the split; all if None.
        index_directory: where the shard index is kept if the directory of the shards is read-only.
        progress: whether a progress bar is shown, where the output is a terminal.
        class_field: name of the field that holds the class of a sample, for a model that is conditional on one.
        document_field: name of the field that holds the document number of each token, for a model that was trained
            with it.
        cache: keeps copies of remote shards on this node.

    Raises:
        DataError: the data set or the split does not exist, its shards are not those of its `dataset.json`, or its
            vocabulary, sequence length or number of classes is not that of the model.
        UserError: a batch or limit without a sequence.
    """
    _check_sizes(batch_size, limit)
    info = find_info(str(directory), split, cache)
    if info.vocabulary_size != vocabulary_size:
        raise DataError(
            f"{directory} has a vocabulary of {info.vocabulary_size} tokens, the model one of {vocabulary_size}; "
            "evaluate on data prepared with the model's tokenizer"
        )
    sample_format = SampleFormat(
        sequence_length=objective.max_seq_len,
        vocabulary_size=vocabulary_size,
        field=info.field,
        class_field=class_field if objective.num_classes is not None else None,
        num_classes=objective.num_classes,
        document_field=document_field,
    )
    opened = Split.open(directory, split, sample_format.fields[1:], index_directory, progress, cache)
    batches = sequential_batches(opened.index, sample_format, batch_size=batch_size, rank=0, world_size=1, limit=limit)
    total = -(-min(opened.index.num_samples, limit or opened.index.num_samples) // batch_size)
    return evaluate_likelihood(
        objective,
        with_progress(batches, "evaluate", "batch", total, progress),
        objective.net.token_emb.weight.device,
        bytes_per_token=opened.bytes_per_token,
    )


def evaluate_reencoded(
    objective: Objective,
    tokenizer: Tokenizer,
    split: Split,
    batch_size: int = 16,
    limit: int | None = None,
    progress: bool = True,
) -> Likelihood:
    """Evaluate a model on the text of a data set that was prepared with another tokenizer.

    Only the bits per byte can be compared with those of other models: tokens are others, and so are sequences.

    Args:
        objective: the model; not one that is conditional on a class.
        tokenizer: of the model.
        split: of a data set of text.
        batch_size: sequences in a forward pass.
        limit: number of the data set's sequences, at most; all if None.
        progress: whether a progress bar is shown, where the output is a terminal.

    Raises:
        DataError: the data set is not of text, or damaged.
        UserError: a batch or limit without a sequence, or a model that needs classes.
    """
    _check_sizes(batch_size, limit)
    if objective.num_classes is not None:
        raise UserError("a model that is conditional on a class is evaluated on data prepared with its own tokenizer")
    text = ReencodedText(split, tokenizer, objective.max_seq_len, limit)
    samples = min(split.index.num_samples, limit or split.index.num_samples)
    size = None if split.bytes_per_token is None else round(samples * split.info.seq_len * split.bytes_per_token)
    with progress_bar("evaluate", size, "B", progress) as bar:
        batches = _counted(text, batch_size, bar)
        likelihood = evaluate_likelihood(objective, batches, objective.net.token_emb.weight.device)
    return replace(likelihood, bytes_per_token=text.bytes / text.tokens)


def _counted(text: ReencodedText, batch_size: int, bar: tqdm[Any]) -> Iterator[Batch]:
    for batch in text.batches(batch_size):
        yield batch
        bar.update(text.bytes - bar.n)


def _check_sizes(batch_size: int, limit: int | None) -> None:
    for name, number in {"batch size": batch_size, "limit": 1 if limit is None else limit}.items():
        if number < 1:
            raise UserError(f"the {name} is {number}; give at least 1")
