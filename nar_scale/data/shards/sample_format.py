"""What a sample must look like, and reading samples that do."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np

from nar_scale.data.formats.field_names import TOKENS_FIELD
from nar_scale.data.formats.npy import decode_npy, decode_uniform
from nar_scale.errors import DataError


class SampleIndex(Protocol):
    """Samples by number: a `DatasetIndex`, or several as one (`ConcatenatedIndex`).

    Attributes:
        num_samples: samples in all.
        fingerprint: two indices with the same one give the same sample for every sample id.
    """

    num_samples: int
    fingerprint: str

    def read(self, sample_id: int, field: str) -> bytes:
        """Return a field of a sample as it is stored."""

    def read_many(self, sample_ids: np.ndarray, field: str) -> list[bytes]:
        """Return a field of several samples, int64 `[n]`, at once."""

    def prefetch(self, sample_ids: np.ndarray) -> None:
        """Start to fetch what will be needed to read samples, int64 `[n]`, soon."""

    def name(self, sample_id: int) -> str:
        """Return "shard PATH, sample KEY" for messages."""


class Sample(NamedTuple):
    """A sample that has been checked.

    Attributes:
        tokens: integers `[length]` of the dtype in which they are stored.
        label: its class, if the format has one.
        documents: integers `[length]`, the number of the document that each token belongs to, if the format has them.
    """

    tokens: np.ndarray
    label: int | None = None
    documents: np.ndarray | None = None


class UniformSamples(NamedTuple):
    """Samples of one length that have been checked.

    Attributes:
        tokens: integers `[batch, length]`.
        labels: int64 `[batch]`, if the format has classes.
        documents: integers `[batch, length]`, if the format has them.
    """

    tokens: np.ndarray
    labels: np.ndarray | None
    documents: np.ndarray | None


@dataclass(frozen=True)
class SampleFormat:
    """The fields of a sample and what they may hold.

    Attributes:
        sequence_length: n, the largest number of tokens that a sample may have; a batch is padded to it.
        vocabulary_size: every token must be below it.
        field: the member with the tokens, a one-dimensional `.npy` of integers. The case of the letters of this and of
            the other fields makes no difference, as in webdataset.
        class_field: the member with the class, an integer as text (WebDataset's `cls`) or, where its name ends in
            `npy`, an array of one element; None if classes are not read.
        num_classes: every class must be below it; None for no limit.
        document_field: the member with the document of each token, a `.npy` as that of the tokens; None if they are
            not read.
    """

    sequence_length: int
    vocabulary_size: int
    field: str = TOKENS_FIELD
    class_field: str | None = None
    num_classes: int | None = None
    document_field: str | None = None

    def __post_init__(self) -> None:
        for name in ("field", "class_field", "document_field"):
            field = getattr(self, name)
            object.__setattr__(self, name, None if field is None else field.lower())

    @cached_property
    def fields(self) -> tuple[str, ...]:
        """The names of all members that are read."""
        return tuple(field for field in (self.field, self.class_field, self.document_field) if field is not None)

    def read(self, index: SampleIndex, sample_id: int) -> Sample:
        """Read a sample.

        Raises:
            DataError: it cannot be read or is not of this format; names shard, key and reason.
        """
        contents = {field: index.read(sample_id, field) for field in self.fields}
        try:
            return self.parse(contents)
        except ValueError as error:
            raise DataError(f"{index.name(sample_id)}: {error}") from None

    def parse(self, contents: Mapping[str, bytes]) -> Sample:
        """Return the sample that the contents of its fields hold.

        Args:
            contents: the bytes of each of `fields`.

        Raises:
            ValueError: they are not of this format; gives reason and remedy.
        """
        tokens = self._parse_row(contents[self.field], self.field)
        if len(tokens) == 0:
            raise ValueError("it holds no token; leave empty samples out when writing the shard")
        if len(tokens) > self.sequence_length:
            raise ValueError(
                f"it has {len(tokens)} tokens, more than the sequence length {self.sequence_length}; "
                "raise the sequence length or prepare the data set again"
            )
        lowest, highest = int(tokens.min()), int(tokens.max())
        if lowest < 0 or highest >= self.vocabulary_size:
            raise ValueError(
                f"token {lowest if lowest < 0 else highest} is outside the vocabulary of {self.vocabulary_size}; "
                "use the tokenizer the data set was made with, or raise the vocabulary size"
            )
        label = None if self.class_field is None else self._parse_class(contents[self.class_field])
        documents = None
        if self.document_field is not None:
            documents = self._parse_documents(contents[self.document_field], tokens)
        return Sample(tokens, label, documents)

    def parse_uniform(self, contents: Mapping[str, Sequence[bytes]]) -> UniformSamples | None:
        """Parse several samples at once if they have one length and dtype, as in most data sets.

        Args:
            contents: for each of `fields` its bytes in every sample.

        Returns:
            The samples; None if their lengths or dtypes differ, or one is not of this format.

        Raises:
            ValueError: a field is damaged, or a class is not of this format.
        """
        tokens = decode_uniform(contents[self.field])
        if tokens is None or tokens.dtype.kind not in "iu" or not 0 < tokens.shape[1] <= self.sequence_length:
            return None
        if tokens.min() < 0 or tokens.max() >= self.vocabulary_size:
            return None
        labels = documents = None
        if self.class_field is not None:
            labels = np.array([self._parse_class(content) for content in contents[self.class_field]], dtype=np.int64)
        if self.document_field is not None:
            documents = decode_uniform(contents[self.document_field])
            if documents is None or documents.dtype.kind not in "iu" or documents.shape != tokens.shape:
                return None
            if (documents[:, 1:] < documents[:, :-1]).any():
                return None
        return UniformSamples(tokens, labels, documents)

    def _parse_class(self, content: bytes) -> int:
        try:
            label = _parse_scalar(content) if str(self.class_field).endswith("npy") else int(content)
            if not -(2**63) <= label < 2**63:
                raise ValueError("it has more than 64 bits")
        except ValueError as error:
            raise ValueError(
                f"field {self.class_field!r} is not an integer ({error}); name another data.class_field or write the "
                "shard again"
            ) from None
        if self.num_classes is not None and not 0 <= label < self.num_classes:
            raise ValueError(
                f"class {label} is outside 0..{self.num_classes - 1}; raise objective.num_classes or write the shard "
                "again"
            )
        return label

    def _parse_documents(self, content: bytes, tokens: np.ndarray) -> np.ndarray:
        documents = self._parse_row(content, str(self.document_field))
        if len(documents) != len(tokens):
            raise ValueError(
                f"field {self.document_field!r} has {len(documents)} numbers for {len(tokens)} tokens; write the shard "
                "again, one number a token"
            )
        if (documents[1:] < documents[:-1]).any():
            raise ValueError(f"the numbers in field {self.document_field!r} fall; write the shard again")
        return documents

    def _parse_row(self, content: bytes, field: str) -> np.ndarray:
        try:
            row = decode_npy(content)
        except ValueError as error:
            raise ValueError(f"field {field!r} cannot be read: {error}; copy or write the shard again") from None
        if row.dtype.kind in "iu" and row.ndim == 1:
            return row
        what = "tokens are" if field == self.field else f"field {field!r} is"
        if row.dtype.kind not in "iu":
            raise ValueError(f"{what} {str(row.dtype)[:80]}, not integers; write the shard again with an integer dtype")
        raise ValueError(f"{what} of shape {row.shape}, not of one dimension; write the shard again, one row a sample")


def _parse_scalar(content: bytes) -> int:
    array = decode_npy(content)
    if array.dtype.kind not in "iu" or array.size != 1:
        raise ValueError(f"it is {str(array.dtype)[:80]} of shape {array.shape}")
    return int(array.item())
