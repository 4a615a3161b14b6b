"""The result of verifying a data set, and its report."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nar_scale.data.shards.dataset_info import INFO_FILE, DatasetInfo
from nar_scale.data.tokenizers import END_TOKEN_TEXT, Tokenizer
from nar_scale.text import integer_ranges, printable

COMMON_TOKENS = 16
UNUSED_RANGES = 12


@dataclass(frozen=True, eq=False)
class SplitVerification:
    """What the shards of a split hold.

    Attributes:
        shards: number of tar files.
        samples: number of samples.
        tokens: number of tokens.
        shortest: tokens in the shortest sample.
        longest: tokens in the longest sample.
        classes: the smallest and the largest; None where samples have no class.
        histogram: int64 `[vocabulary]`, how often each token occurs.
        checksum: hex blake2b of 16 bytes over the digests of all samples in order, where the digest of a sample is
            blake2b of 16 bytes over its tokens as little-endian int64. It depends on which tokens are in which sample,
            and neither on the dtype in which they are stored nor on how samples are divided into shards.
        without_index: shards that had no index, and so no digest to compare with.
    """

    shards: int
    samples: int
    tokens: int
    shortest: int
    longest: int
    classes: tuple[int, int] | None
    histogram: np.ndarray
    checksum: str
    without_index: int

    @property
    def mean_length(self) -> float:
        """Tokens in a sample, on average."""
        return self.tokens / self.samples

    @property
    def different_tokens(self) -> int:
        """Number of tokens that occur."""
        return int((self.histogram > 0).sum())

    @property
    def entropy(self) -> float:
        """Entropy of the distribution of single tokens, in bits."""
        frequencies = self.histogram[self.histogram > 0] / self.tokens
        return float(-(frequencies * np.log2(frequencies)).sum()) + 0.0  # not -0.0


@dataclass(frozen=True, eq=False)
class Verification:
    """The result of `verify`; as a string, a report of several lines.

    Attributes:
        directory: of the data set.
        info: its `dataset.json`.
        splits: by name.
        tokenizer: of the data set; None if there is none, or the package it needs is not installed.
    """

    directory: Path
    info: DatasetInfo
    splits: dict[str, SplitVerification]
    tokenizer: Tokenizer | None

    def __str__(self) -> str:
        without_index = sum(split.without_index for split in self.splits.values())
        lines = [f"{self.directory}: every sample can be read, and all counts agree with {INFO_FILE}"]
        if without_index:
            shards = sum(split.shards for split in self.splits.values())
            lines.append(
                f"{without_index:,} of {shards:,} shards had no index: nothing says what their bytes should be"
            )
        else:
            lines.append("all shards have the digests in their indices")
        for name, split in self.splits.items():
            lines += [printable(name), *(f"  {line}" for line in self._describe(split))]
        return "\n".join(lines)

    def _describe(self, split: SplitVerification) -> Iterator[str]:
        vocabulary = self.info.vocabulary_size
        yield f"shards    {split.shards:,}"
        yield f"samples   {split.samples:,}"
        yield f"tokens    {split.tokens:,}"
        yield (
            f"lengths   {split.shortest:,} to {split.longest:,}, {split.mean_length:,.1f} on average, "
            f"{self.info.seq_len:,} allowed"
        )
        if split.classes is not None:
            yield f"classes   {split.classes[0]} to {split.classes[1]}"
        yield f"entropy   {split.entropy:.3f} bits a token, {math.log2(vocabulary):.3f} if all were equally common"
        yield f"checksum  {split.checksum}"
        yield f"used      {split.different_tokens:,} of {vocabulary:,} tokens"
        unused = np.flatnonzero(split.histogram == 0)
        if len(unused):
            yield f"unused    {len(unused):,} tokens: {_first_ranges(unused.tolist())}"
        yield "most common tokens"
        order = np.argsort(-split.histogram, kind="stable")[:COMMON_TOKENS]
        for token in order[split.histogram[order] > 0].tolist():
            text = "" if self.tokenizer is None else f"  {_text(self.tokenizer, token)}"
            yield f"  {token:>{len(str(vocabulary))}}  {split.histogram[token] / split.tokens:6.2%}{text}"


def _first_ranges(numbers: list[int]) -> str:
    ranges = integer_ranges(numbers)
    return ", ".join(ranges[:UNUSED_RANGES]) + (", ..." if len(ranges) > UNUSED_RANGES else "")


def _text(tokenizer: Tokenizer, token: int) -> str:
    text = END_TOKEN_TEXT.strip() if token == tokenizer.end_token else tokenizer.decode([token])
    return f"'{printable(text)}'"
