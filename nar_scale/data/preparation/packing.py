"""Documents into samples: joined and cut, or one by one."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from nar_scale.data.shards.sample_format import Sample


class _Run(NamedTuple):
    document: int
    tokens: np.ndarray


class Packer:
    """Cuts documents into samples.

    Args:
        sequence_length: tokens in a sample.
        packed: join documents, so that all samples but the last are full; otherwise each document starts a sample, and
            a longer one is cut into several.
        document_ids: note which document each token belongs to, numbered from 0 in each sample.
    """

    def __init__(self, sequence_length: int, packed: bool, document_ids: bool):
        self.sequence_length, self.packed, self.document_ids = sequence_length, packed, document_ids
        self._runs: list[_Run] = []
        self._waiting = 0
        self._documents = 0

    def add(self, tokens: np.ndarray, label: int | None = None) -> Iterator[Sample]:
        """Take a document, int [n] with n > 0, and yield the samples that are full."""
        self._documents += 1
        start = 0
        while start < len(tokens):
            piece = tokens[start : start + self.sequence_length - self._waiting]
            self._runs.append(_Run(self._documents, piece))
            self._waiting += len(piece)
            start += len(piece)
            if self._waiting == self.sequence_length:
                yield self._take(label)
        if not self.packed:
            yield from self.finish(label)

    def finish(self, label: int | None = None) -> Iterator[Sample]:
        """Yield what is left as a shorter sample, if anything is."""
        if self._runs:
            yield self._take(label)

    def _take(self, label: int | None) -> Sample:
        tokens = np.concatenate([run.tokens for run in self._runs])
        documents = None
        if self.document_ids:
            numbers = np.array([run.document - self._runs[0].document for run in self._runs])
            documents = np.repeat(numbers, [len(run.tokens) for run in self._runs])
            documents = documents.astype(np.min_scalar_type(self.sequence_length))
        self._runs, self._waiting = [], 0
        return Sample(tokens, label, documents)
