"""Reading samples, checking them, and stacking them into a batch."""

from typing import NamedTuple

import numpy as np
import torch

from nar_scale.data.batch import PAD_TOKEN, Batch
from nar_scale.data.classes import ClassReader
from nar_scale.data.index import DatasetIndex
from nar_scale.errors import DataError


class BatchArrays(NamedTuple):
    """The fields of a `Batch`, in its order, as numpy arrays.

    This is what loader workers hand over: through a pipe, in a fraction of the time that tensors take through shared
    memory, of which containers often have too little.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    sample_ids: np.ndarray
    epochs: np.ndarray
    positions: np.ndarray
    classes: np.ndarray | None = None

    def to_batch(self) -> Batch:
        """Return the batch, sharing memory with the arrays."""
        tensors = {name: torch.from_numpy(array) for name, array in self._asdict().items() if array is not None}
        return Batch(**tensors)


class BatchReader:
    """Reads checked batches of token samples.

    Args:
        index: the data set.
        sequence_length: n, the length to which samples are padded and which none may exceed.
        vocabulary_size: every token must be below it.
        classes: of the same samples, if they are wanted.

    Raises:
        DataError: the classes are those of other shards.
    """

    def __init__(
        self, index: DatasetIndex, sequence_length: int, vocabulary_size: int, classes: ClassReader | None = None
    ):
        if classes is not None and classes.index.fingerprint != index.fingerprint:
            raise DataError(f"shards of {index.shards[0].parent} have changed while they were opened; start again")
        self.index = index
        self.classes = classes
        self.sequence_length = sequence_length
        self.vocabulary_size = vocabulary_size

    def read(self, positions: np.ndarray, epochs: np.ndarray, sample_ids: np.ndarray) -> BatchArrays:
        """Return the samples with tokens [batch, sequence_length].

        Args:
            positions: int64 [batch], places in the stream.
            epochs: int64 [batch].
            sample_ids: int64 [batch], what to read.

        Raises:
            DataError: naming shard, key and reason, if a sample cannot be read or is not a row of valid tokens.
        """
        tokens = np.full((len(sample_ids), self.sequence_length), PAD_TOKEN, dtype=np.int64)
        lengths = np.empty(len(sample_ids), dtype=np.int64)
        for row, (sample_id, sample) in enumerate(zip(sample_ids, self.index.read(sample_ids))):
            fault = self._fault(sample)
            if fault is not None:
                raise DataError(f"{self.index.name(sample_id)}: {fault}")
            tokens[row, : len(sample)] = sample
            lengths[row] = len(sample)
        classes = None if self.classes is None else self.classes.read(sample_ids)
        return BatchArrays(tokens, lengths, sample_ids, epochs, positions, classes)

    def _fault(self, sample: np.ndarray) -> str | None:
        if sample.dtype.kind not in "iu":
            return f"tokens are {sample.dtype}, not integers; write the shard again with an integer dtype"
        if sample.ndim != 1:
            return f"tokens have shape {sample.shape}, not one dimension; write the shard again, one row a sample"
        if len(sample) == 0:
            return "it holds no token; leave empty samples out when writing the shard"
        if len(sample) > self.sequence_length:
            return (
                f"it has {len(sample)} tokens, more than the sequence length {self.sequence_length}; "
                "raise the sequence length or prepare the data set again"
            )
        lowest, highest = int(sample.min()), int(sample.max())
        if lowest < 0 or highest >= self.vocabulary_size:
            return (
                f"token {lowest if lowest < 0 else highest} is outside the vocabulary of {self.vocabulary_size}; "
                "use the tokenizer the data set was made with, or raise the vocabulary size"
            )
        return None
