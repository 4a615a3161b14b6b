"""Reading samples and padding them to a batch."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from nar_scale.data.loading.batch import PAD_TOKEN, Batch
from nar_scale.data.shards.sample_format import Sample, SampleFormat, SampleIndex, UniformSamples
from nar_scale.errors import DataError


class BatchArrays(NamedTuple):
    """The fields of a `Batch`, in its order, as int64 arrays of numpy.

    Loader workers return these: through a pipe, in a fraction of the time that tensors take through shared memory, of
    which containers often have too little.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    sample_ids: np.ndarray
    epochs: np.ndarray
    positions: np.ndarray
    classes: np.ndarray | None = None
    documents: np.ndarray | None = None
    faults: tuple[str, ...] = ()

    def to_batch(self) -> Batch:
        """Return the batch, sharing memory with the arrays."""
        arrays = {
            name: torch.from_numpy(value)
            for name, value in self._asdict().items()
            if value is not None and name != "faults"
        }
        return Batch(**arrays, faults=self.faults)


class BatchReader:
    """Reads batches of samples.

    Args:
        index: the data set.
        sample_format: what each sample must look like.
        skip_faults: return a sample that cannot be used as one of length 0, named in `faults`, instead of raising.
    """

    def __init__(self, index: SampleIndex, sample_format: SampleFormat, skip_faults: bool = False):
        self.index = index
        self.sample_format = sample_format
        self.skip_faults = skip_faults

    def read(self, positions: np.ndarray, epochs: np.ndarray, sample_ids: np.ndarray) -> BatchArrays:
        """Return samples as a batch with tokens `[batch, sequence_length]`.

        Args:
            positions: int64 `[batch]`, of the samples in the stream.
            epochs: int64 `[batch]`, of the stream there.
            sample_ids: int64 `[batch]`, which samples to read.

        Raises:
            DataError: a sample cannot be used and faults are not skipped; names shard, key and reason.
        """
        batch = self._read_at_once(positions, epochs, sample_ids)
        if batch is not None:
            return batch
        samples: list[Sample | None] = []
        faults = []
        for sample_id in sample_ids:
            try:
                samples.append(self.sample_format.read(self.index, sample_id))
            except DataError as error:
                if not self.skip_faults:
                    raise
                samples.append(None)
                faults.append(str(error))
        return stack(samples, self.sample_format, positions, epochs, sample_ids, tuple(faults))

    def _read_at_once(self, positions: np.ndarray, epochs: np.ndarray, sample_ids: np.ndarray) -> BatchArrays | None:
        """Read all samples at once, which is much faster; return None if any of them cannot be used."""
        try:
            contents = {field: self.index.read_many(sample_ids, field) for field in self.sample_format.fields}
            uniform = self.sample_format.parse_uniform(contents)
            if uniform is not None:
                return self._pad(uniform, positions, epochs, sample_ids)
            samples = [self.sample_format.parse(dict(zip(contents, sample))) for sample in zip(*contents.values())]
        except (DataError, ValueError):
            return None
        return stack(samples, self.sample_format, positions, epochs, sample_ids)

    def _pad(
        self, samples: UniformSamples, positions: np.ndarray, epochs: np.ndarray, sample_ids: np.ndarray
    ) -> BatchArrays:
        count, length = samples.tokens.shape
        tokens = np.full((count, self.sample_format.sequence_length), PAD_TOKEN, dtype=np.int64)
        tokens[:, :length] = samples.tokens
        documents = None
        if samples.documents is not None:
            documents = np.zeros_like(tokens)
            documents[:, :length] = samples.documents
        lengths = np.full(count, length, dtype=np.int64)
        return BatchArrays(tokens, lengths, sample_ids, epochs, positions, samples.labels, documents)


def stack(
    samples: Sequence[Sample | None],
    sample_format: SampleFormat,
    positions: np.ndarray,
    epochs: np.ndarray,
    sample_ids: np.ndarray,
    faults: tuple[str, ...] = (),
) -> BatchArrays:
    """Pad samples to one length.

    Args:
        samples: None for a sample that is skipped.
        sample_format: says the length, and which fields there are.
        positions: int64 `[batch]`, of the samples in the stream.
        epochs: int64 `[batch]`, of the stream there.
        sample_ids: int64 `[batch]`.
        faults: why samples are skipped.

    Returns:
        Arrays as in `Batch`, 0 beyond the end of a sample and for one that is skipped.
    """
    shape = (len(samples), sample_format.sequence_length)
    tokens = np.full(shape, PAD_TOKEN, dtype=np.int64)
    lengths = np.zeros(len(samples), dtype=np.int64)
    classes = None if sample_format.class_field is None else np.zeros(len(samples), dtype=np.int64)
    documents = None if sample_format.document_field is None else np.zeros(shape, dtype=np.int64)
    for row, sample in enumerate(samples):
        if sample is None:
            continue
        length = len(sample.tokens)
        tokens[row, :length], lengths[row] = sample.tokens, length
        if classes is not None and sample.label is not None:
            classes[row] = sample.label
        if documents is not None and sample.documents is not None:
            documents[row, :length] = sample.documents
    return BatchArrays(tokens, lengths, sample_ids, epochs, positions, classes, documents, faults)
