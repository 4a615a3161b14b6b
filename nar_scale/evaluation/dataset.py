"""The likelihood of a prepared data set under a model."""

from __future__ import annotations

from pathlib import Path

from tqdm import tqdm

from nar_scale.data import DatasetIndex, DatasetInfo, SampleFormat, ShardCache, sequential_batches
from nar_scale.data.shards.layout import named_shards
from nar_scale.data.shards.shard_comparison import check_against_info
from nar_scale.errors import DataError, UserError
from nar_scale.evaluation.likelihood import Likelihood, evaluate_likelihood
from nar_scale.objectives import Objective


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
    """Evaluate a model on a split of a data set that `launcher/prepare.py` wrote.

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
    for name, number in {"batch size": batch_size, "limit": 1 if limit is None else limit}.items():
        if number < 1:
            raise UserError(f"the {name} is {number}; give at least 1")
    directory = str(directory)
    info = DatasetInfo.find(directory, {} if cache is None else cache.storage_options)
    if info is None:
        raise DataError(f"{directory} has no dataset.json; make the data set with launcher/prepare.py")
    if split not in info.splits:
        raise DataError(f"{directory} has no split {split!r}, only {', '.join(info.splits)}")
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
    shards = named_shards(directory, f"{split}/*.tar", info)
    index = DatasetIndex.open(directory, shards, sample_format.fields, index_directory, progress, cache)
    check_against_info(index, directory, shards, info)
    batches = sequential_batches(index, sample_format, batch_size=batch_size, rank=0, world_size=1, limit=limit)
    total = -(-min(index.num_samples, limit or index.num_samples) // batch_size)
    return evaluate_likelihood(
        objective,
        tqdm(batches, total=total, desc="evaluating", unit="batch", disable=None if progress else True),
        objective.net.token_emb.weight.device,
        bytes_per_token=info.splits[split].bytes_per_token,
    )
