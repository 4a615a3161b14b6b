"""Cutting documents into samples: concatenated (packed), or one by one."""

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
        packed: concatenate documents, so that all samples but the last are full; otherwise each document starts a
            sample, and a longer one is cut into several.
        document_ids: record which document each token belongs to, numbered from 0 in each sample.
    """

    def __init__(self, sequence_length: int, packed: bool, document_ids: bool):
        self.sequence_length, self.packed, self.document_ids = sequence_length, packed, document_ids
        self._runs: list[_Run] = []
        self._waiting = 0
        self._documents = 0

    def add(self, tokens: np.ndarray, label: int | None = None) -> Iterator[Sample]:
        """Add a document and yield the samples that are full.

        Args:
            tokens: integers `[n]`, n > 0.
            label: its class; only one document a sample can keep it.
        """
        self._documents += 1
        start = 0
        while start < len(tokens):
            piece = tokens[start : start + self.sequence_length - self._waiting]
            self._runs.append(_Run(self._documents, piece))
            self._waiting += len(piece)
            start += len(piece)
            if self._waiting == self.sequence_length:
                yield self._next_sample(label)
        if not self.packed:
            yield from self.finish(label)

    def finish(self, label: int | None = None) -> Iterator[Sample]:
        """Yield the tokens that are left as a shorter sample, if there are any."""
        if self._runs:
            yield self._next_sample(label)

    def _next_sample(self, label: int | None) -> Sample:
        tokens = np.concatenate([run.tokens for run in self._runs])
        documents = None
        if self.document_ids:
            numbers = np.array([run.document - self._runs[0].document for run in self._runs])
            documents = np.repeat(numbers, [len(run.tokens) for run in self._runs])
            documents = documents.astype(np.min_scalar_type(self.sequence_length))
        self._runs, self._waiting = [], 0
        return Sample(tokens, label, documents)
