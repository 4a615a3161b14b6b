"""The text of a data set in the tokens of another tokenizer, so that models with any tokenizers can be compared."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, islice

import numpy as np
import torch

from nar_scale.data import Batch, Tokenizer
from nar_scale.evaluation.split import Split


def cut_documents(tokens: Iterable[int], end_token: int | None) -> list[list[int]]:
    """Cut token ids into documents at the end tokens, which are left out; empty documents are left out too."""
    if end_token is None:
        whole = list(tokens)
        return [whole] if whole else []
    return [list(part) for ended, part in groupby(tokens, key=lambda token: token == end_token) if not ended]


def join_documents(documents: Sequence[str], tokenizer: Tokenizer) -> list[int]:
    """The token ids of documents, with an end token between each two."""
    ids: list[int] = []
    for number, document in enumerate(documents):
        ids += [tokenizer.end_token] * (number > 0)
        ids += tokenizer.encode(document.encode()).tolist()
    return ids


class ReencodedText:
    """The documents of a split in another tokenizer's tokens, each followed by an end token, cut into sequences.

    A document is cut where a run of `Split.runs` ends, so that memory is bounded.

    Args:
        split: of a data set of text.
        tokenizer: of the model.
        sequence_length: tokens of a sequence; the last one may have fewer.
        limit: number of the data set's samples that are read, at most; all if None.

    Attributes:
        bytes: length of the text that has been passed on so far, UTF-8.
        tokens: number of tokens that have been passed on so far, end tokens included.
    """

    def __init__(self, split: Split, tokenizer: Tokenizer, sequence_length: int, limit: int | None = None):
        self._split, self._tokenizer, self._limit = split, tokenizer, limit
        self._sequence_length = sequence_length
        self.bytes = self.tokens = 0

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Batches of sequences, numbered from 0.

        Raises:
            DataError: a sample cannot be read, or the data set is not of text.
        """
        sequences = enumerate(self._sequences())
        while rows := list(islice(sequences, batch_size)):
            yield padded_batch([row for _, row in rows], self._sequence_length, first=rows[0][0])

    def _sequences(self) -> Iterator[list[int]]:
        n, waiting = self._sequence_length, np.empty(0, dtype=np.int64)
        for ids in self._documents():
            self.tokens += len(ids)
            waiting = np.concatenate((waiting, ids))
            whole = len(waiting) // n * n
            yield from waiting[:whole].reshape(-1, n).tolist()
            waiting = waiting[whole:]
        if len(waiting):
            yield waiting.tolist()

    def _documents(self) -> Iterator[np.ndarray]:
        source = self._split.tokenizer()
        for run in self._split.runs(self._limit):
            for document in cut_documents(run.tolist(), self._split.info.end_token):
                text = source.decode(document).encode()
                self.bytes += len(text)
                yield np.append(self._tokenizer.encode(text).astype(np.int64), self._tokenizer.end_token)


def padded_batch(rows: Sequence[Sequence[int]], length: int, first: int = 0) -> Batch:
    """A batch of token sequences that are the samples `first`, `first + 1`, ... of a stream.

    Args:
        rows: token ids, at most `length` in a row.
        length: tokens of a padded row.
        first: number of the first row.
    """
    tokens = torch.zeros(len(rows), length, dtype=torch.int64)
    for row, ids in zip(tokens, rows):
        row[: len(ids)] = torch.tensor(ids, dtype=torch.int64)
    numbers = torch.arange(first, first + len(rows))
    return Batch(tokens, torch.tensor([len(ids) for ids in rows]), numbers, torch.zeros_like(numbers), numbers)
