"""What can be counted in generated text: entropy, distinct n-grams, repetition, and which words it uses."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

REPEATED_WORDS = 4
DISTINCT_WORDS = (1, 2, 3, 4)

_PIECE = re.compile(r"\w+|[^\w\s]")
_WORD = re.compile(r"[^\W\d_]{3,}")


@dataclass(frozen=True)
class TextStatistics:
    """Counts over a set of texts.

    Attributes:
        entropy: of the tokens of a text, in nats, see `unigram_entropy`.
        distinct: by n, the share of the n-grams of words that are different, see `distinct_share`.
        repetition: share of the 4-grams of words that occurred before in the same text, see `repeated_share`.
    """

    entropy: float
    distinct: dict[int, float]
    repetition: float


def count_text(tokens: Sequence[Sequence[int]], texts: Sequence[str]) -> TextStatistics:
    """Count over texts.

    Args:
        tokens: the token ids of each text.
        texts: as many texts.
    """
    pieces = [split_words(text) for text in texts]
    return TextStatistics(
        unigram_entropy(tokens), {n: distinct_share(pieces, n) for n in DISTINCT_WORDS}, repeated_share(pieces)
    )


def unigram_entropy(sequences: Sequence[Sequence[int]]) -> float:
    """The entropy of the token frequencies in a sequence, in nats, as a mean over the sequences.

    -sum_v f_v log f_v with f_v the share of token v among the tokens of the sequence; the companion of generative
    perplexity in arXiv:2604.02718. It grows with the length of the sequences, so that only those of one length can be
    compared. Empty sequences do not count; it is 0 if all are empty.
    """
    entropies = [_entropy(Counter(sequence)) for sequence in sequences if len(sequence)]
    return sum(entropies) / len(entropies) if entropies else 0.0


def split_words(text: str) -> list[str]:
    """The words, numbers and marks of a text, in order; white space is left out."""
    return _PIECE.findall(text)


def distinct_share(texts: Sequence[Sequence[str]], n: int) -> float:
    """The number of different n-grams over the number of n-grams in all texts (distinct-n, arXiv:1510.03055).

    It falls with the amount of text. 0 if there is no n-gram.
    """
    grams = [gram for text in texts for gram in _grams(text, n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def repeated_share(texts: Sequence[Sequence[str]], n: int = REPEATED_WORDS) -> float:
    """The share of the n-grams that occurred before in the same text (seq-rep-n, arXiv:1908.04319).

    A mean over the texts that have n-grams; 0 if there are none.
    """
    shares = [1 - distinct_share([text], n) for text in texts if len(text) >= n]
    return sum(shares) / len(shares) if shares else 0.0


def inner_words(text: str) -> list[str]:
    """The runs of at least three letters in a text, in small letters.

    Those that touch the beginning or the end are left out, since a sample may be cut inside a word.
    """
    return [match[0].lower() for match in _WORD.finditer(text) if match.start() > 0 and match.end() < len(text)]


def _entropy(counts: Counter[int]) -> float:
    total = sum(counts.values())
    return -sum(count / total * math.log(count / total) for count in counts.values())


def _grams(words: Sequence[str], n: int) -> Iterator[tuple[str, ...]]:
    return zip(*(words[start:] for start in range(n)))
